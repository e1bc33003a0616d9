"""Train failed trials again.

Optuna never changes a finished trial, so each attempt is a trial of its own in Optuna. In the study, all attempts share
one number and count as one trial.
"""

import copy
from collections.abc import Sequence

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweep.storage.optuna_internals import add_trial

# User attributes of a trial.
NUMBER = "number"  # its number in the study, if it differs from Optuna's
ATTEMPT = "attempt"  # the number of attempts that failed before


def numbered(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the latest attempt at each of the study's trials, in the order of their numbers.

    A trial whose number in the study differs from Optuna's is copied, and the copy has the study's number.
    """
    latest: dict[int, FrozenTrial] = {}
    for trial in trials:
        number = trial.user_attrs.get(NUMBER, trial.number)
        if number != trial.number:
            trial = copy.copy(trial)
            trial.number = number
        latest[number] = trial
    return [latest[number] for number in sorted(latest)]


def trials_of(study: optuna.Study) -> list[FrozenTrial]:
    """Return the study's trials as `numbered` does. They are not copies: do not change them."""
    return numbered(study.get_trials(deepcopy=False))


def renumbered(study: optuna.Study) -> optuna.Study:
    """Return the study; if trials were trained again, a copy in memory with only the latest attempts."""
    trials = study.get_trials(deepcopy=False)
    if not any(NUMBER in trial.user_attrs for trial in trials):
        return study
    made = optuna.create_study(study_name=study.study_name, storage=InMemoryStorage(), directions=study.directions)
    for key, value in study.user_attrs.items():
        made.set_user_attr(key, value)
    for trial in numbered(trials):
        add_trial(made, copy.copy(trial))
    return made


def failed(trials: Sequence[FrozenTrial], n_trials: int) -> list[int]:
    """Return the numbers of the failed trials among the first `n_trials`. The trials must be `numbered`."""
    return [t.number for t in trials[:n_trials] if t.state == TrialState.FAIL]


def retry(study: optuna.Study, numbers: Sequence[int]) -> None:
    """Queue a new attempt at each of the given trials, with the same parameters."""
    trials = trials_of(study)
    for number in numbers:
        before = trials[number]
        again = create_trial(
            state=TrialState.WAITING,
            params=before.params,
            distributions=before.distributions,
            user_attrs={NUMBER: number, ATTEMPT: n_failed(before) + 1},
        )
        add_trial(study, again)


def n_failed(trial: FrozenTrial) -> int:
    """Return the number of attempts at the trial that failed before this one."""
    return trial.user_attrs.get(ATTEMPT, 0)
