"""Stop a study that another process runs, or a trial of it, and queue trials again: checks first, then the request."""

import time
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from sweep.execution.attempts import failed, trials_of
from sweep.execution.queue import is_trained
from sweep.execution.steering import is_stopped, request_stop, request_stop_of_all, requeue
from sweep.study.reading import open_study, read_study
from sweep.study.table import WORDS
from sweep.tracking.folders import StudyFolder
from sweep.utils.errors import ConfigError

_POLL_S = 0.2


def retry(folder: StudyFolder, numbers: Sequence[int] | None, storage: str | None) -> list[int]:
    """Queue failed trials again. See `sweep.retry_trials`."""
    study, url = open_study(folder, storage)
    trials = trials_of(study)
    for number in numbers or ():
        trial = _trial(trials, number, folder)
        if trial.state != TrialState.FAIL and not is_stopped(trial, folder):
            state = _state(trial, folder)
            raise ConfigError("trial", f"{number} is {state}; only a trial that failed or was stopped is queued again")
    return requeue(study, folder, url, failed(trials, len(trials)) if numbers is None else numbers)


def stop(folder: StudyFolder, number: int | None, wait: bool, storage: str | None) -> None:
    """Stop a study, or one of its trials. See `sweep.stop_study`."""
    study = read_study(folder, storage)
    trials = trials_of(study)
    if number is not None:
        trial = _trial(trials, number, folder)
        if not is_trained(trial, folder):
            state = _state(trial, folder)
            raise ConfigError("trial", f"{number} is {state}; only a trial that is being trained can be stopped")
        request_stop(trial, folder)
    elif not folder.live_workers() and not any(is_trained(t, folder) for t in trials):
        raise ConfigError("study", f"no worker of '{folder.path.name}' is running")
    else:
        request_stop_of_all(trials, folder)
    while wait and _is_going_on(trials_of(study), number, folder):
        time.sleep(_POLL_S)


def _is_going_on(trials: Sequence[FrozenTrial], number: int | None, folder: StudyFolder) -> bool:
    if number is None:
        return folder.run.is_running() or any(is_trained(t, folder) for t in trials)
    return is_trained(trials[number], folder)


def _state(trial: FrozenTrial, folder: StudyFolder) -> str:
    return "stopped" if is_stopped(trial, folder) else WORDS[trial.state]


def _trial(trials: Sequence[FrozenTrial], number: int, folder: StudyFolder) -> FrozenTrial:
    """Return a trial by its number. Raise ConfigError if there is none."""
    if not 0 <= number < len(trials):
        known = f"only 0 to {len(trials) - 1}" if trials else "as it has none yet"
        raise ConfigError("trial", f"'{folder.path.name}' has no trial {number}, {known}")
    return trials[number]
