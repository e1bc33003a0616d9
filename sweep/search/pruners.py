"""sweep's own pruners.

A study reports each trial's best value so far, which Optuna's PatientPruner cannot handle. Trials of another Hydra
application need not state how many epochs they have.
"""

import optuna
from optuna import Study
from optuna.pruners import BasePruner, HyperbandPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, TrialState

from sweep.config.metrics import sign_of
from sweep.search import build
from sweep.search.settings import StudySettings
from sweep.storage.optuna_internals import estimates_rungs
from sweep.utils.errors import ConfigError, one_line

_RUNGS = 12  # as in conf/hydra/sweeper/pruner/asha.yaml


class PatientPruner(BasePruner):
    """Prunes no trial that still improves.

    Optuna's pruner of this name waits until recent values are worse than earlier ones, but a best value so far never
    gets worse.
    """

    def __init__(self, wrapped_pruner: BasePruner | None, patience: int, min_delta: float = 0.0) -> None:
        """Configure the pruner.

        Args:
            wrapped_pruner: decides about a trial that has stopped improving. With None, such a trial is pruned.
            patience: for how many reported values a trial must not have improved; at least 1.
            min_delta: a change of the best value that is not larger than this does not count as an improvement.

        Raises:
            ValueError: `patience` or `min_delta` is too small.
        """
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


class HalvingByFirstTrial(BasePruner):
    """Asynchronous successive halving for trials whose last epoch is not known.

    The lowest rung is a twelfth of the steps of the first complete trial. Until there is one, nothing is pruned.
    """

    def __init__(self, reduction_factor: int = 2, min_early_stopping_rate: int = 0) -> None:
        """Configure the pruner. The arguments are those of Optuna's SuccessiveHalvingPruner."""
        self._arguments = {"reduction_factor": reduction_factor, "min_early_stopping_rate": min_early_stopping_rate}
        self._made: BasePruner | None = None

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        if self._made is None:
            complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            last = next((t.last_step for t in complete if t.last_step is not None), None)
            if last is None:
                return False
            self._made = SuccessiveHalvingPruner(min_resource=max(1, last // _RUNGS), **self._arguments)
        return self._made.prune(study, trial)


def compares_rungs(pruner: BasePruner) -> bool:
    """Return whether the pruner needs nothing of all trials but the values that it noted at rungs."""
    known = type(pruner) in (SuccessiveHalvingPruner, HyperbandPruner, HalvingByFirstTrial)
    return known and not estimates_rungs(pruner)


def compares_ranks(pruner: BasePruner) -> bool:
    """Return whether a pruner that compares rungs asks only how many of all trials are better: hyperband picks some."""
    return not isinstance(pruner, HyperbandPruner)


def check_pruner(settings: StudySettings) -> None:
    """Raise ConfigError if the study's pruner cannot be made, or fails for a first value."""
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
