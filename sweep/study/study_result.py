"""The result of a study, for those who read it."""

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
    """A study as it was when it was read. Changing this object does not change the study.

    Attributes:
        name: the study's name.
        folder: the study's folder, which has a folder for each trial.
        optuna: a copy of the study in memory, for Optuna's own plots and tables.
    """

    name: str
    folder: Path
    optuna: Study

    @classmethod
    def of(cls, study: Study, folder: StudyFolder) -> "StudyResult":
        """Copy a study that is open in its storage."""
        return cls(study.study_name, folder.path, snapshot(study))

    @cached_property
    def trials(self) -> list[TrialResult]:
        """The finished trials, by number. Of a trial that was trained again, this has the latest attempt."""
        return [tried(trial) for trial in trials_of(self.optuna) if trial.state.is_finished()]

    @cached_property
    def best_trials(self) -> list[TrialResult]:
        """The best trial; with several objectives, the trials of the Pareto front. Empty if no trial is complete."""
        return [tried(trial) for trial in best_trials(self.optuna)]

    @property
    def best(self) -> TrialResult | None:
        """The best trial; None if no trial is complete, or with several objectives."""
        return self.best_trials[0] if self.best_trials and len(self.optuna.directions) == 1 else None

    @property
    def value(self) -> float | None:
        """The value of the best trial; None if there is no best trial."""
        return None if self.best is None else self.best.value
