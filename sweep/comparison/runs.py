"""What a comparison reads: tuning trials from their studies, final runs from their journals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sweep.comparison.contenders import Contender
from sweep.config.metrics import sign_of
from sweep.config.nodes import steps_per_epoch
from sweep.study.trial_result import Range, TrialResult
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.utils.errors import DamagedJournal

Array = NDArray[np.float64]


class Run(NamedTuple):
    """A finished run. values: what it ended with, by metric. val_loss: (epochs,). epoch_steps: updates in an epoch."""

    values: dict[str, float]
    val_loss: Array
    epoch_steps: int
    train_s: float

    @property
    def n_steps(self) -> int:
        return len(self.val_loss) * self.epoch_steps

    def reaches(self, loss: float) -> float:
        """The epoch in which the validation loss is that low for the first time, infinite where it never is."""
        reached = np.flatnonzero(self.val_loss <= loss)
        return float(reached[0]) + 1 if len(reached) else math.inf


@dataclass
class Entry:
    """A contender on a task.

    searched: what tuning searched, in words by key; ranges: those that are numbers. trials: of all tunings.
    chosen: by seed, None where no trial of the tuning came to an end. runs, untuned: by seed, None for one that
    diverged or failed, or had nothing to train. studies: names. problem, untuned_problem: why the contender, or its
    defaults, take no part.
    """

    contender: Contender
    task: str
    searched: dict[str, str] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    n_tunings: int = 1
    trials: list[TrialResult] = field(default_factory=list)
    chosen: list[TrialResult | None] = field(default_factory=list)
    runs: list[Run | None] = field(default_factory=list)
    untuned: list[Run | None] = field(default_factory=list)
    untuned_problem: str | None = None
    problem: str | None = None
    studies: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.contender.name


def read_run(folder: RunFolder, state: str) -> Run | None:
    """None for a run that diverged or failed, or never began. state: of its trial.

    Raises DamagedJournal where the record of a complete trial is damaged or lacks its end.
    """
    events = [*journal.records(folder.journal, "start", "end")]
    end = events[-1] if events and events[-1]["kind"] == "end" else None
    if state == "complete" and end is None:
        raise DamagedJournal(folder.journal, None, "the trial is complete, but its record has no end")
    starts = [event for event in events if event["kind"] == "start" and "dataset" in event]
    if not starts or end is None or end["status"] != "FINISHED" or end["tags"].get("state") != "COMPLETE":
        return None
    train_s = sum(sum(past["values"].get("time/train_s", [0.0])) for past in events if past["kind"] == "end")
    values = {name: column[0] for name, column in end["values"].items()}
    n_train, batch = starts[-1]["dataset"]["profile"]["n_train"], int(starts[-1]["params"]["trainer.batch_size"])
    return Run(values, journal.curves(folder.journal)["val/loss"].values, steps_per_epoch(n_train, batch), train_s)


def choose(trials: Sequence[TrialResult], n_tunings: int, n_seeds: int, direction: str) -> list[TrialResult | None]:
    """The best trial of each tuning, for each seed; trial i is one of tuning i modulo `n_tunings`."""
    sign = sign_of(direction)
    best: list[TrialResult | None] = []
    for tuning in range(n_tunings):
        complete = [t for t in trials[tuning::n_tunings] if t.state == "complete" and t.value is not None]
        best.append(min(complete, key=lambda t: sign * (t.value or 0.0)) if complete else None)
    return [best[seed % n_tunings] for seed in range(n_seeds)]


def costs(runs: Sequence[Run | None], metric: str, direction: str) -> Array:
    """What the runs came to, the less the better; infinite for one that is missing."""
    return np.array([math.inf if run is None else sign_of(direction) * run.values[metric] for run in runs])
