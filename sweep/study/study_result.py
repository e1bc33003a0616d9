"""A study as its readers have it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from optuna import Study

from sweep.execution.attempts import trials_of
from sweep.study.reading import snapshot
from sweep.study.results import best_trials
from sweep.study.trial_result import TrialResult, tried
from sweep.tracking.folders import StudyFolder


@dataclass(frozen=True)
class StudyResult:
    """What a study had come to when it was read. Nothing that you do to it reaches the study.

    folder: with a folder for each trial. optuna: a copy in memory, for Optuna's own plots and tables.
    """

    name: str
    folder: Path
    optuna: Study

    @classmethod
    def of(cls, study: Study, folder: StudyFolder) -> "StudyResult":
        return cls(study.study_name, folder.path, snapshot(study))

    @cached_property
    def trials(self) -> list[TrialResult]:
        """Those that are finished, in the order of their numbers; of one that was trained again, the latest attempt."""
        return [tried(trial) for trial in trials_of(self.optuna) if trial.state.is_finished()]

    @cached_property
    def best_trials(self) -> list[TrialResult]:
        """The best trial, or those of the Pareto front; none before any is complete."""
        return [tried(trial) for trial in best_trials(self.optuna)]

    @property
    def best(self) -> TrialResult | None:
        """The best trial; None before any is complete, and with several objectives."""
        return self.best_trials[0] if self.best_trials and len(self.optuna.directions) == 1 else None

    @property
    def value(self) -> float | None:
        """That of the best trial."""
        return None if self.best is None else self.best.value
