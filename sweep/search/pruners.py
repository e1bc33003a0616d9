"""Pruners of our own. A study reports the best value so far, and Optuna's pruners but one know what to do with that."""

import optuna
from optuna import Study
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

from sweep.config.metrics import sign_of
from sweep.search.settings import StudySettings
from sweep.trial import build
from sweep.utils.errors import ConfigError, one_line


class PatientPruner(BasePruner):
    """Asks `wrapped_pruner` once the best value has not become better by more than `min_delta` for `patience` steps.

    Optuna's own of that name waits for recent values that are worse than earlier ones, which a best so far never is.
    Without a wrapped pruner it is early stopping.
    """

    def __init__(self, wrapped_pruner: BasePruner | None, patience: int, min_delta: float = 0.0) -> None:
        if patience < 1:
            raise ValueError(f"patience must be >= 1, got {patience}")
        if min_delta < 0:
            raise ValueError(f"min_delta must be >= 0, got {min_delta}")
        self._wrapped, self._patience, self._min_delta = wrapped_pruner, patience, min_delta

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        values = [value for _, value in sorted(trial.intermediate_values.items())]
        if len(values) <= self._patience:
            return False
        gain = sign_of(study.direction.name) * (values[-1 - self._patience] - values[-1])
        return gain <= self._min_delta and (self._wrapped is None or self._wrapped.prune(study, trial))


def check_pruner(settings: StudySettings) -> None:
    """Raises ConfigError for one that cannot be made, or fails when it is asked."""
    pruner = build.pruner(settings.pruner)
    if not settings.prunes:
        return
    study = optuna.create_study(directions=settings.direction, pruner=pruner)
    trial = study.ask()
    trial.report(1.0, step=1)
    try:
        trial.should_prune()
    except Exception as error:
        raise ConfigError("hydra.sweeper.pruner", f"cannot prune: {one_line(error)}") from error
