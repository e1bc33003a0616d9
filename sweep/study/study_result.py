"""The result of a study, for those who read it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna import Study

from sweep.execution.attempts import trials_of
from sweep.study.reading import objective_names, snapshot
from sweep.study.results import best_trials
from sweep.study.status import LiveWorker, StudyStatus, live_workers, status_of
from sweep.study.table import trials_table, write_table
from sweep.study.trial_result import TrialResult, trial_result
from sweep.tracking.folders import StudyFolder
from sweep.utils import html
from sweep.utils.errors import ConfigError
from sweep.utils.paths import absolute

if TYPE_CHECKING:
    import pandas as pd

_MOST_SHOWN = 10


@dataclass(frozen=True)
class StudyResult:
    """A study as it was when it was read. Changing this object does not change the study.

    >>> import sweep
    >>> study = sweep.run_study(["experiment=debug", "tracking=off"], n_trials=2, pruner="none", study_name="growing")
    >>> study.trials()[["number", "state"]]
       number     state
    0       0  complete
    1       1  complete
    >>> study.value == study.best.value == min(study.trials().value)
    True
    >>> study = study.resume(n_trials=3)
    >>> len(study.trials())
    3

    Attributes:
        name: the study's name.
        folder: the study's folder, which has a folder for each trial.
        optuna: a copy of the study in memory, for Optuna's own plots and tables.
    """

    name: str
    folder: Path
    optuna: Study
    _resume: "Callable[..., StudyResult] | None" = field(default=None, repr=False, compare=False)
    _workers: Sequence[LiveWorker] = field(default=(), repr=False, compare=False)

    @classmethod
    def of(cls, study: Study, folder: StudyFolder, resume: "Callable[..., StudyResult] | None" = None) -> "StudyResult":
        """Copy a study that is open in its storage. `resume` is what the method of that name calls."""
        return cls(study.study_name, folder.path, snapshot(study), resume, live_workers(study, folder))

    def trials(self) -> "pd.DataFrame":
        """Return all trials as a table of pandas, with a row for each trial, finished or not.

        Returns:
            The columns `number`, `state` (complete, pruned, failed, running, waiting), `value`, `duration_s`, `began`,
            `ended`, `params.<key>`, `problem`, `folder` and `mlflow_run_id`. With several objectives there is
            `values.<name>` for each instead of `value`. If a trial has several runs, `mlflow_run_id` is that of the
            first. If it was trained again, the row describes its latest attempt.
        """
        return trials_table(trials_of(self.optuna), objective_names(self.optuna), StudyFolder(self.folder))

    @cached_property
    def results(self) -> list[TrialResult]:
        """The finished trials, by number. Of a trial that was trained again, this has the latest attempt."""
        folder = StudyFolder(self.folder)
        return [trial_result(trial, folder) for trial in trials_of(self.optuna) if trial.state.is_finished()]

    @cached_property
    def best_trials(self) -> list[TrialResult]:
        """The best trial; with several objectives, the trials of the Pareto front. Empty if no trial is complete."""
        folder = StudyFolder(self.folder)
        return [trial_result(trial, folder) for trial in best_trials(self.optuna)]

    @property
    def best(self) -> TrialResult | None:
        """The best trial; None if no trial is complete, or with several objectives."""
        return self.best_trials[0] if self.best_trials and len(self.optuna.directions) == 1 else None

    @property
    def value(self) -> float | None:
        """The value of the best trial; None if there is no best trial."""
        return None if self.best is None else self.best.value

    @property
    def status(self) -> StudyStatus:
        """How the study stands: what runs, the counts by state, the best so far and the time that is left."""
        return status_of(self.optuna, StudyFolder(self.folder), self._workers)

    def export(self, path: str | Path) -> Path:
        """Write the table of trials to a file that ends in .csv, .parquet or .json, and return its path.

        Raises:
            ConfigError: the file exists, cannot be written, or ends otherwise.
        """
        place = absolute(path)
        write_table(self.trials(), place)
        return place

    def resume(self, **settings: Any) -> "StudyResult":
        """Train what the study still lacks, and return it as it is then. This object stays as it is.

        A study that `run_study` returned is resumed with the same arguments. Of one that was loaded, the command in its
        record is resumed (see `load_study`).

        Args:
            settings: settings that replace those of the study, such as n_trials=64, and `show` and `wait` of
                `run_study`.

        Raises:
            ConfigError: the study cannot be resumed, or is not the same any more.
            Exception: whatever else `run_study` raises.
        """
        if self._resume is None:
            raise ConfigError("study", f"'{self.name}' has no record of how it was run; call run_study as before")
        return self._resume(**settings)

    def _repr_html_(self) -> str:
        """Return the study as a notebook shows it: how it stands, and its best trials."""
        values = [t for t in self.results if t.value is not None and t.state == "complete"]
        values.sort(key=lambda t: t.value or 0.0, reverse=self.optuna.directions[0].name == "MAXIMIZE")
        best = values[:_MOST_SHOWN]
        keys = [*dict.fromkeys(key for t in best for key in t.params)]  # a trial may lack some
        rows = [[t.number, f"{t.value:.6g}", *(t.params.get(key, "") for key in keys)] for t in best]
        return self.status._repr_html_() + (html.table(("trial", "value", *keys), rows) if rows else "")
