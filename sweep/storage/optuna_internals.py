"""What sweep needs of Optuna beyond its public interface, each once.

Optuna's own `Study.ask` and `Trial` are for one process that samples and trains in turn. Here trials are handed out
under a lock, sampled later, and taken over from dead workers, which needs their ids and the storage itself. Where
Optuna changes one of these, tests/storage/test_optuna_internals.py names it.
"""

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial


def trial_id(trial: FrozenTrial) -> int:
    """Return what a storage knows the trial by, which is not its number."""
    return trial._trial_id


def storage_of(study: optuna.Study) -> BaseStorage:
    """Return the storage that the study reads and writes."""
    return study._storage


def add_trial(study: optuna.Study, trial: FrozenTrial) -> None:
    """Add a copy of the trial in whatever state it is; `Study.add_trial` takes none that is half begun.

    The trial gets the id of the copy.
    """
    trial._trial_id = study._storage.create_new_trial(study._study_id, trial)


def as_sampler_sees(study: optuna.Study, trial: FrozenTrial) -> optuna.Study:
    """Return the study as its sampler is to see it: of hyperband's brackets, each learns alone."""
    return optuna.pruners._filter_study(study, trial)
