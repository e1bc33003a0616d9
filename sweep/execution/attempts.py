"""Failed trials that are trained again. Each attempt is a trial of Optuna's, which never changes one that is finished;
to the study, its attempts are one trial of one number."""

import copy
from collections.abc import Sequence

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweep.storage.optuna_internals import add_trial

# User attributes of a trial.
NUMBER = "number"  # the study's number of it, where that is not Optuna's
ATTEMPT = "attempt"  # how many attempts failed before it


def numbered(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials as the study counts them, in order: of each number the latest attempt."""
    latest: dict[int, FrozenTrial] = {}
    for trial in trials:
        number = trial.user_attrs.get(NUMBER, trial.number)
        if number != trial.number:
            trial = copy.copy(trial)
            trial.number = number
        latest[number] = trial
    return [latest[number] for number in sorted(latest)]


def trials_of(study: optuna.Study) -> list[FrozenTrial]:
    """The study's trials, `numbered`; not to be changed."""
    return numbered(study.get_trials(deepcopy=False))


def renumbered(study: optuna.Study) -> optuna.Study:
    """The study, or if trials were trained again a copy in memory that has the latest attempts alone."""
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
    """Numbers of the failed trials among the study's first `n_trials`, of trials that are `numbered`."""
    return [t.number for t in trials[:n_trials] if t.state == TrialState.FAIL]


def retry(study: optuna.Study, numbers: Sequence[int]) -> None:
    """Add an attempt at each of those numbers, with the parameters that failed."""
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
    """How many attempts at the trial failed before this one."""
    return trial.user_attrs.get(ATTEMPT, 0)
