"""All uses of Optuna's private attributes and functions.

Optuna's own `Study.ask` and `Trial` are for one process that samples and trains in turn. In sweep, workers claim
trials under a lock, sample their params later, and reclaim trials of dead workers. This needs the ids of trials and the
storage itself. If Optuna changes something that is used here, tests/storage/test_optuna_internals.py names it.
"""

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, SuccessiveHalvingPruner, _successive_halving
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial


def trial_id(trial: FrozenTrial) -> int:
    """Return the trial's id in the storage, which is not its number."""
    return trial._trial_id


def storage_of(study: optuna.Study) -> BaseStorage:
    """Return the storage that the study reads and writes."""
    return study._storage


def add_trial(study: optuna.Study, trial: FrozenTrial) -> None:
    """Add a copy of the trial in any state, since `Study.add_trial` rejects one that has only partly begun.

    The trial object gets the id of the copy.
    """
    trial._trial_id = study._storage.create_new_trial(study._study_id, trial)


def as_sampler_sees(study: optuna.Study, trial: FrozenTrial) -> optuna.Study:
    """Return the study as its sampler should see it: with hyperband, only the trials of the trial's own bracket."""
    return optuna.pruners._filter_study(study, trial)


def rungs_ahead(trial: FrozenTrial) -> list[str]:
    """Return where trials keep their values at the rungs that the trial may now reach: names of system attributes.

    The lowest rung is at least 1, and each further one at least twice as high, so the trial's last step limits them.
    """
    first, last = _successive_halving._get_current_rung(trial), trial.last_step or 0
    return [_successive_halving._completed_rung_key(rung) for rung in range(first, last.bit_length())]


def estimates_rungs(pruner: BasePruner) -> bool:
    """Return whether the pruner reads the steps of complete trials, to find out where its lowest rung is."""
    return isinstance(pruner, SuccessiveHalvingPruner) and pruner._min_resource is None


def contains_number(distribution: BaseDistribution, value: float) -> bool:
    """Return whether the number lies in the range and on a step of it."""
    return distribution._contains(float(value))
