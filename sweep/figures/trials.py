"""The trials of a study as plain data, which the figures of a study are drawn from."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

DECADE = 10.0  # values that span more than this are drawn on a logarithmic axis
_LONGEST_LABEL = 18


class Param(NamedTuple):
    """A searched config key.

    Attributes:
        key: the config key.
        values: shape (n,), for each trial; NaN where the trial does not have the key. For a choice, the index of the
            value in `choices`.
        choices: the choices as texts; empty for a range of numbers.
        is_log: whether a range of numbers is searched on a logarithmic scale.
    """

    key: str
    values: NDArray[np.float64]
    choices: Sequence[str] = ()
    is_log: bool = False


class Trials(NamedTuple):
    """The n trials of a study that have a value.

    Attributes:
        objectives: the names of the objectives.
        signs: for each objective, 1.0 if lower values are better and -1.0 if higher ones are.
        numbers: their numbers, shape (n,), ascending.
        values: shape (n, objectives).
        is_pruned: shape (n,). The value of a pruned trial is the best that it reached.
        is_best: shape (n,), whether the trial is the best one, or on the Pareto front.
        params: what is searched, in the order in which it first appears.
    """

    objectives: Sequence[str]
    signs: Sequence[float]
    numbers: NDArray[np.int64]
    values: NDArray[np.float64]
    is_pruned: NDArray[np.bool_]
    is_best: NDArray[np.bool_]
    params: Sequence[Param]

    def best_so_far(self, objective: int) -> NDArray[np.float64]:
        """Return the best value of the complete trials up to each trial, shape (n,); NaN before the first."""
        sign = self.signs[objective]
        costs = np.where(self.is_pruned, np.inf, sign * self.values[:, objective])
        best = np.minimum.accumulate(costs)
        return sign * np.where(np.isinf(best), np.nan, best)


def label(choice: Any, most: int = _LONGEST_LABEL) -> str:
    """Return the text of a choice, shortened to `most` characters."""
    text = str(choice)
    return text if len(text) <= most else text[: most - 1] + "…"
