"""Trials and ranges of a study, in a form that does not depend on Optuna."""

from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from sweep.execution.queue import PACKING, PROBLEM
from sweep.study.results import STATES, config_values


class TrialResult(NamedTuple):
    """A finished trial of a study.

    Attributes:
        number: the trial's number in the study, from 0.
        params: the values that the study chose, by config key.
        value: the objective. A pruned trial has what it had reached. None if the trial has no value, or with several
            objectives.
        state: complete, pruned or failed.
        diverged: True if the trial diverged. Its state is then pruned.
        problem: why it failed or diverged, in one line; otherwise None.
        values: the values of all objectives; empty if the trial has none.
        packing: why it trained sequentially although the study packs trials, in one line; otherwise None.
    """

    number: int
    params: dict[str, Any]
    value: float | None
    state: str
    diverged: bool
    problem: str | None
    values: tuple[float, ...] = ()
    packing: str | None = None


class Range(NamedTuple):
    """A searched range of numbers.

    Attributes:
        low: the smallest number.
        high: the largest number.
        log: True if the range is searched on a logarithmic scale.
        choices: the numbers to choose from, in ascending order; None if the range is continuous.
    """

    low: float
    high: float
    log: bool
    choices: tuple[float, ...] | None


def tried(trial: FrozenTrial) -> TrialResult:
    """Convert a finished trial of Optuna's, which must be `numbered`."""
    problem = trial.user_attrs.get(PROBLEM)
    diverged = trial.state == TrialState.PRUNED and problem is not None  # a trial that the pruner stops has no problem
    values = () if trial.state == TrialState.FAIL else tuple(trial.values or ())
    value = values[0] if len(values) == 1 else None
    state, packing = STATES[trial.state], trial.user_attrs.get(PACKING)
    return TrialResult(trial.number, config_values(trial), value, state, diverged, problem, values, packing)


def range_of(distribution: BaseDistribution) -> Range | None:
    """Convert a distribution of Optuna's. Return None for a choice in which not every option is a number."""
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        if not all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices):
            return None
        ordered = sorted(float(choice) for choice in choices if isinstance(choice, int | float))
        return Range(ordered[0], ordered[-1], False, tuple(ordered))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return Range(distribution.low, distribution.high, distribution.log, None)
