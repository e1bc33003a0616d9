"""The result of a complete run, read back from its journal."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sweep.config.metrics import best_of
from sweep.config.schema import Config
from sweep.tracking import journal
from sweep.tracking.description import run_name
from sweep.tracking.folders import RunFolder
from sweep.utils.curve import Curve


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a complete run.

    Attributes:
        name: the chosen options and the seed, such as adam-cyclic-mlp-noisy_sine-s0.
        monitor: the curve whose best epoch gives the best weights, by default val/loss. If a training function reports
            no such curve, its first curve, or the first metric that it returned.
        value: the best value of that curve. If a training function reports no such curve, the last value.
        is_best: False if `value` is only the last value.
        best_epoch: the epoch of the value, from 1; 0 if a training function reported nothing.
        n_epochs: the number of epochs that were trained, or the last epoch that a training function reported.
        metrics: `val/...` at the best epoch, and `test/...` of the weights of that epoch. Of a training function, its
            single values.
        history: every recorded curve, by metric name.
        train_s: seconds of training in this process.
        folder: the run's folder.
        tracking_uri: the tracking store of MLflow; None without tracking.
        uploaded: True if the upload process finished its work on the run in time. With tracking, MLflow then has the
            complete record.
    """

    name: str
    monitor: str
    value: float
    best_epoch: int
    n_epochs: int
    metrics: dict[str, float]
    history: dict[str, Curve]
    train_s: float
    folder: Path
    tracking_uri: str | None
    uploaded: bool
    is_best: bool = True


def outcome_of(
    config: Config, run: RunFolder, returned: dict[str, float], train_s: float, uri: str | None, uploaded: bool
) -> Outcome:
    """Return the outcome of a run that has ended.

    Args:
        config: of the run. Its monitor is the curve whose best value counts, if the training reported that curve.
        run: the folder of the run. The curves are read back from its journal.
        returned: the metrics that the training returned, by name.
        train_s: seconds of training in this process.
        uri: the tracking store; None without tracking.
        uploaded: whether the upload process finished its work on the run.
    """
    history, monitor = journal.curves(run.journal), config.trainer.monitored
    is_best = monitor in history
    if not is_best:
        monitor = next(iter([*history, *returned]))
    watched = history.get(monitor, Curve(np.array([0]), np.array([returned.get(monitor, math.nan)])))
    value = best_of(watched.values.tolist(), config.monitor_direction) if is_best else float(watched.values[-1])
    best_epoch = int(watched.steps[watched.values == value][0] if is_best else watched.steps[-1])
    val = {
        name: curve.values[curve.steps == best_epoch].item()
        for name, curve in history.items()
        if name.startswith("val/") and best_epoch in curve.steps
    }
    return Outcome(
        name=run_name(config),
        monitor=monitor,
        value=value,
        best_epoch=best_epoch,
        n_epochs=int(watched.steps[-1]),
        metrics={**val, **returned},
        history=history,
        train_s=train_s,
        folder=run.path,
        tracking_uri=uri,
        uploaded=uploaded,
        is_best=is_best,
    )
