"""The data of a comparison: tuning trials from their studies, and final runs from their journals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sweep.comparison.contenders import Contender
from sweep.config.epochs import UNLIMITED, epoch_size, validation_steps
from sweep.config.metrics import sign_of
from sweep.config.nodes import Loader, Trainer
from sweep.study.trial_result import Range, TrialResult
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.utils.errors import DamagedJournal

Array = NDArray[np.float64]


class Run(NamedTuple):
    """A complete run.

    Attributes:
        values: the values that it recorded at its end, by metric.
        val_loss: the validation loss by epoch, shape (epochs,); with `trainer.val_interval`, of each validation. Empty
            if a training function reports none.
        epoch_steps: the number of updates in an epoch, or from one validation to the next; 1 for a training function.
        train_s: seconds of training, over all attempts.
    """

    values: dict[str, float]
    val_loss: Array
    epoch_steps: int
    train_s: float

    @property
    def n_steps(self) -> int:
        """The number of updates in all epochs."""
        return len(self.val_loss) * self.epoch_steps

    @property
    def lowest(self) -> float:
        """The lowest validation loss; infinity if there is none."""
        return float(self.val_loss.min(initial=math.inf))

    def reaches(self, loss: float) -> float:
        """Return the first epoch, from 1, whose validation loss is at most `loss`; infinity if there is none."""
        reached = np.flatnonzero(self.val_loss <= loss)
        return float(reached[0]) + 1 if len(reached) else math.inf


@dataclass
class Entry:
    """A contender on a task.

    Attributes:
        contender: the contender.
        task: the task; empty if there is only one.
        searched: the ranges that tuning searched, as text by key.
        ranges: the ranges of numbers among them.
        n_tunings: the number of tunings.
        trials: the trials of all tunings.
        chosen: the best trial of the tuning that belongs to each fresh seed; None if no trial of it is complete.
        best: the overrides of the best trial of all tunings; empty if no trial is complete.
        runs: the run of the chosen configuration on each fresh seed; None if it diverged or failed, or if nothing was
            chosen.
        untuned: the same for the untuned defaults.
        untuned_problem: why the untuned defaults take no part; otherwise None.
        problem: why the contender takes no part; otherwise None.
        studies: the names of its studies.
    """

    contender: Contender
    task: str
    searched: dict[str, str] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    n_tunings: int = 1
    trials: list[TrialResult] = field(default_factory=list)
    chosen: list[TrialResult | None] = field(default_factory=list)
    best: list[str] = field(default_factory=list)
    runs: list[Run | None] = field(default_factory=list)
    untuned: list[Run | None] = field(default_factory=list)
    untuned_problem: str | None = None
    problem: str | None = None
    studies: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The contender's name."""
        return self.contender.name


def read_run(folder: RunFolder, state: str) -> Run | None:
    """Read a run from its journal.

    Args:
        folder: the folder of the run.
        state: complete, pruned or failed: the state of its trial.

    Returns:
        The run; None if it diverged, failed or never began.

    Raises:
        DamagedJournal: the journal is damaged, or lacks the end of a complete trial.
    """
    events = [*journal.records(folder.journal, "start", "end")]
    end = events[-1] if events and events[-1]["kind"] == "end" else None
    if state == "complete" and end is None:
        raise DamagedJournal(folder.journal, None, "the trial is complete, but its record has no end")
    starts = [event for event in events if event["kind"] == "start"]
    if not starts or end is None or end["status"] != "FINISHED" or end["tags"].get("state") != "COMPLETE":
        return None
    train_s = sum(sum(past["values"].get("time/train_s", [0.0])) for past in events if past["kind"] == "end")
    values = {name: column[0] for name, column in end["values"].items()}
    curve = journal.curves(folder.journal).get("val/loss")
    val_loss = np.array([]) if curve is None else curve.values
    if _is_function(starts[-1]):
        return Run(values, val_loss, 1, train_s)
    n_train, params = starts[-1]["dataset"]["profile"]["n_train"], starts[-1]["params"]
    trainer = Trainer(
        epochs=int(params["trainer.epochs"]),
        batch_size=int(params["trainer.batch_size"]),
        accumulate=int(params.get("trainer.accumulate", 1)),
        val_interval=str(params.get("trainer.val_interval", 1)),
        max_steps=None if (n_steps := params.get("trainer.max_steps")) is None else int(n_steps),
    )
    loader = Loader(drop_last=str(params.get("loader.drop_last")).lower() == "true")
    n_train = epoch_size(UNLIMITED if n_train is None else n_train, trainer, loader)
    return Run(values, val_loss, validation_steps(trainer, n_train), train_s)


def _is_function(start: Mapping[str, Any]) -> bool:
    """Return whether a training function, or another application, trained the run that a `start` event begins."""
    return "trainer.call" in start["params"] or "dataset" not in start


def choose(trials: Sequence[TrialResult], n_tunings: int, n_seeds: int, direction: str) -> list[TrialResult | None]:
    """Return the best complete trial of the tuning that belongs to each fresh seed; None if the tuning has none.

    Trial i belongs to tuning i modulo `n_tunings`, and seed j to tuning j modulo `n_tunings`.
    """
    best = [best_trial(trials[tuning::n_tunings], direction) for tuning in range(n_tunings)]
    return [best[seed % n_tunings] for seed in range(n_seeds)]


def best_trial(trials: Sequence[TrialResult], direction: str) -> TrialResult | None:
    """Return the best complete trial, the first of equal ones; None if no trial is complete."""
    sign = sign_of(direction)
    complete = [t for t in trials if t.state == "complete" and t.value is not None]
    return min(complete, key=lambda t: sign * (t.value or 0.0), default=None)


def costs(runs: Sequence[Run | None], metric: str, direction: str) -> Array:
    """Return the metric of each run as a cost (less is better): shape (n,), infinite for a missing run."""
    return np.array([math.inf if run is None else sign_of(direction) * run.values[metric] for run in runs])
