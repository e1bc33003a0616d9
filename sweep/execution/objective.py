"""The values that a study optimises. They are read from the journals of a trial's runs, so they survive a crash."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from sweep.config.callback_node import declared
from sweep.config.metrics import OF_ANY_TASK, OF_NOISE, best_of
from sweep.config.schema import Config
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.trial.checks import metric_names
from sweep.trial.prepare import Data
from sweep.utils.errors import ConfigError


def check_objectives(objectives: Sequence[str], config: Config, data: Data) -> None:
    """Raise ConfigError for an objective that trials of such a config and such data do not have."""
    known = [*metric_names(config, data), *OF_ANY_TASK]
    if data.content.noise is not None:
        known += OF_NOISE
    if not {*objectives} <= {*known}:
        known += declared(config.trainer.callbacks)
    for name in objectives:
        if name not in known:
            raise ConfigError(
                "hydra.sweeper.objective", f"trials on this data have no '{name}'; choose one of: {', '.join(known)}"
            )


def run_values(run: RunFolder, names: Sequence[str], directions: Sequence[str]) -> list[float]:
    """Return the value of each objective of a finished run.

    Args:
        run: the folder of the run.
        names: the objectives. A curve gives its best value over the epochs. Any other metric gives the value that the
            run recorded at its end.
        directions: minimize or maximize, for each objective.

    Raises:
        ConfigError: the run recorded nothing with that name.
        ValueError: a value is not finite.
        DamagedJournal: the run's journal is damaged.
    """
    curves: dict[str, list[float]] = {}
    ended: Mapping[str, Sequence[float]] = {}
    for record, _ in journal.read(run.journal):
        if record["kind"] == "metrics":
            for name, column in record["values"].items():
                curves.setdefault(name, []).extend(column)
        elif record["kind"] == "end" and record["values"]:
            ended = record["values"]
    values = []
    for name, direction in zip(names, directions, strict=True):
        if name in curves:
            values.append(best_of(curves[name], direction))
        elif name in ended:
            values.append(ended[name][0])
        else:
            known = ", ".join(sorted({*curves, *ended}))
            raise ConfigError("hydra.sweeper.objective", f"a trial has no '{name}'; it has: {known}")
        if not math.isfinite(values[-1]):
            raise ValueError(f"{name} is {values[-1]}")
    return values


def mean_values(runs: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of each objective over a trial's runs."""
    return [fmean(column) for column in zip(*runs, strict=True)]
