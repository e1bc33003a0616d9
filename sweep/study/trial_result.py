"""Trials and ranges of a study, in a form that does not depend on Optuna."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from sweep.execution.queue import PACKING, PROBLEM
from sweep.study.restoring import missing, missing_text, stored_curves
from sweep.study.results import STATES, config_values, recorded_overrides
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.utils.curve import Curve
from sweep.utils.errors import ConfigError

if TYPE_CHECKING:
    from sweep.trial.predictor import Predictor


class TrialResult(NamedTuple):
    """A finished trial of a study. What it left in its folder is read when you ask for it.

    >>> import sweep
    >>> study = sweep.run_study(["experiment=debug", "tracking=off"], n_trials=2, study_name="first")
    >>> best = study.best
    >>> best.state, sorted(best.params)
    ('complete', ['scheduler.base_lr', 'scheduler.max_lr', 'trainer.batch_size'])
    >>> best.curves["val/loss"].values.shape  # an array, one value an epoch
    (2,)
    >>> best.load_model().predict([[0.5]]).shape
    (1,)

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
        folder: the trial's folder. With several seeds or folds, it has a folder for each of them (see `runs`).
        elsewhere: the host that has the trial's files, if they are not here; otherwise None.
    """

    number: int
    params: dict[str, Any]
    value: float | None
    state: str
    diverged: bool
    problem: str | None
    values: tuple[float, ...] = ()
    packing: str | None = None
    folder: Path = Path()
    elsewhere: str | None = None

    @property
    def runs(self) -> list[Path]:
        """The folders of the trial's runs that have begun: one, or one for each seed and fold."""
        return [run.path for run in _runs_in(self.folder)]

    @property
    def overrides(self) -> list[str]:
        """The overrides that compose the trial's configuration, as for `sweep.compose`.

        Raises:
            ConfigError: the trial's files are not here.
            Damaged: the file that holds them was changed.
        """
        is_given = "seed" not in self.params
        found = recorded_overrides(RunFolder(self.folder), RunFolder(self.folder / "seed-0"), is_given)
        if not found and self.elsewhere is not None:
            raise self._missing()
        if not found:
            raise ConfigError("trial", f"{self.number} left no overrides in '{self.folder}'; they may be elsewhere")
        return found

    @property
    def curves(self) -> dict[str, Curve]:
        """The curves by name, each with the arrays `steps` and `values`; with several seeds or folds, of the first.

        If another machine has the trial's files, they are read from MLflow, which takes seconds.
        `sweep.study.trial_result.curves_of` reads those of any run.

        Raises:
            ConfigError: the trial's files are not here, and MLflow does not have its curves.
            DamagedJournal: the record is damaged.
        """
        if first := _runs_in(self.folder)[:1]:
            return curves_of(first[0].path)
        if self.elsewhere is None:
            return {}
        if stored := stored_curves(StudyFolder(self.folder.parent.parent), self.number):
            return stored[0]
        raise self._missing()

    def load_model(self, device: str = "cpu") -> "Predictor":
        """Load the model of the best epoch, as `sweep.load_model` does; with several seeds or folds, of the first run.

        Args:
            device: where the model computes, as `trainer.device`.

        Raises:
            ConfigError: the trial has no model, as one that was pruned or failed, or its files are not here.
            Damaged: the model's file is damaged.
        """
        from sweep.trial.stored_model import load_model

        if self.elsewhere is not None:
            raise self._missing()
        return load_model(next(iter(self.runs), self.folder), device=device)

    def _missing(self) -> ConfigError:
        return ConfigError("trial", missing_text({str(self.elsewhere): [self.number]}))


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


def curves_of(run: Path) -> dict[str, Curve]:
    """Return the curves of a run by name, from its folder. Raise DamagedJournal if its record is damaged."""
    return journal.curves(RunFolder(run).journal)


def trial_result(trial: FrozenTrial, study: StudyFolder) -> TrialResult:
    """Convert a finished trial of Optuna's, which must be `numbered`. `study` is the study's folder."""
    problem = trial.user_attrs.get(PROBLEM)
    diverged = trial.state == TrialState.PRUNED and problem is not None  # a trial that the pruner stops has no problem
    values = () if trial.state == TrialState.FAIL else tuple(trial.values or ())
    value = values[0] if len(values) == 1 else None
    state, packing = STATES[trial.state], trial.user_attrs.get(PACKING)
    folder = study.trial(trial.number).path
    elsewhere = next(iter(missing([trial], study)), None)
    params = config_values(trial)
    return TrialResult(trial.number, params, value, state, diverged, problem, values, packing, folder, elsewhere)


def _runs_in(folder: Path) -> list[RunFolder]:
    """Return the runs in a trial's folder that have begun, by seed and fold."""
    replicates = sorted(folder.glob("seed-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return [run for run in map(RunFolder, (folder, *replicates)) if run.journal.exists()]


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
