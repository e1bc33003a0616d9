"""What a study optimises: values read from the journals of a trial's runs, so that they survive their process."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from sweep.errors import ConfigError
from sweep.record import journal
from sweep.record.folder import RunFolder

_WORST = {"minimize": math.inf, "maximize": -math.inf}
_BETTER = {"minimize": min, "maximize": max}


def best_of(values: Sequence[float], direction: str) -> float:
    return _BETTER[direction](values, default=_WORST[direction])


def run_values(run: RunFolder, names: Sequence[str], directions: Sequence[str]) -> list[float]:
    """Each objective of a finished run: of a curve its best value over the epochs, otherwise what the run ended with.

    Raises ConfigError for a name that the run recorded nothing under.
    """
    curves = journal.curves(run.journal)
    ended: Mapping[str, Sequence[float]] = {}
    for record, _ in journal.read(run.journal):
        if record["kind"] == "end" and record["values"]:
            ended = record["values"]
    values = []
    for name, direction in zip(names, directions, strict=True):
        if name in curves:
            values.append(best_of(curves[name].values.tolist(), direction))
        elif name in ended:
            values.append(ended[name][0])
        else:
            known = ", ".join(sorted({*curves, *ended}))
            raise ConfigError("hydra.sweeper.objective", f"a trial has no '{name}'; it has: {known}")
    return values


def mean_values(runs: Sequence[Sequence[float]]) -> list[float]:
    """The mean over replicates of each objective."""
    return [fmean(column) for column in zip(*runs, strict=True)]
