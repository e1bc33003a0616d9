"""What another process may ask of a study: stop its trials, or queue some of them again.

Requests to stop are files in the study's folder, so they reach workers on every machine that shares it.
"""

import math
import time
from collections.abc import Collection, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweep.execution.attempts import n_failed, retry, trials_of
from sweep.execution.queue import DEAD_AFTER_S, HEARTBEAT, OWNER, is_trained
from sweep.storage.lock import StudyLock
from sweep.storage.optuna_internals import storage_of
from sweep.storage.storage import as_database
from sweep.tracking.folders import StudyFolder

_PATIENCE_S = 20.0  # a worker stores a heartbeat every 15 s
_POLL_S = 0.5


def requeue(study: optuna.Study, folder: StudyFolder, storage: str | None, numbers: Collection[int]) -> list[int]:
    """Queue trials again. Failed trials get a new attempt. Trials that were stopped one by one continue.

    The folders of failed attempts are moved aside. Other trials are left as they are: another command may have queued
    them meanwhile.

    Args:
        study: the study, open for writing.
        folder: its folder.
        storage: its storage; None for the file in its folder.
        numbers: the numbers of the trials.

    Returns:
        The numbers of the trials that are queued.
    """
    with StudyLock(storage, folder):
        trials = [t for t in trials_of(study) if t.number in numbers]
        failed = [t for t in trials if t.state == TrialState.FAIL]
        for trial in failed:
            folder.set_aside(trial.number, n_failed(trial) + 1)
        retry(study, [t.number for t in failed])
        stopped = [t for t in trials if is_stopped(t, folder)]
        for trial in stopped:
            folder.stop_request(trial.number).unlink(missing_ok=True)
    return sorted(t.number for t in (*failed, *stopped))


def who_trains(study: optuna.Study, trials: Sequence[FrozenTrial], folder: StudyFolder) -> str | None:
    """Return the name of a worker that trains one of the trials; None if there is none.

    A worker on another machine lives if its last heartbeat is recent. In a storage without a clock, it has to store one
    while this function waits, for up to 20 s.
    """
    trained = [trial for trial in trials if is_trained(trial, folder)]
    here = [t.user_attrs[OWNER] for t in trained if folder.worker_lives(_worker_of(t))]
    if here or not trained:
        return here[0] if here else None
    database = as_database(storage_of(study))
    silent_s = None if database is None else database.silent_s(database.get_study_id_from_name(study.study_name))
    if silent_s is not None:
        owners = (str(trial.user_attrs.get(OWNER)) for trial in trained)
        return next((owner for owner in owners if silent_s.get(owner, math.inf) < DEAD_AFTER_S), None)
    before = {trial.number: trial.user_attrs.get(HEARTBEAT) for trial in trained}
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        time.sleep(_POLL_S)
        for trial in trials_of(study):
            if trial.number in before and trial.user_attrs.get(HEARTBEAT) != before[trial.number]:
                return str(trial.user_attrs.get(OWNER))
    return None


def is_stopped(trial: FrozenTrial, folder: StudyFolder) -> bool:
    """Return True if the trial was stopped alone, and no worker trains it."""
    is_open = trial.state in (TrialState.WAITING, TrialState.RUNNING)
    return is_open and folder.is_stopped(trial.number) and not is_trained(trial, folder)


def release_stopped(trials: Sequence[FrozenTrial], folder: StudyFolder) -> None:
    """Queue all trials again that were stopped alone. The study's command does so when it begins."""
    for trial in trials:
        if is_stopped(trial, folder):
            folder.stop_request(trial.number).unlink(missing_ok=True)


def request_stop(trial: FrozenTrial, folder: StudyFolder) -> None:
    """Ask the worker of a trial to save it at the end of its epoch, and to continue with others."""
    folder.workers.mkdir(exist_ok=True)
    folder.stop_request(trial.number).touch()


def request_stop_of_all(trials: Sequence[FrozenTrial], folder: StudyFolder) -> None:
    """Ask all workers of a study to save their trials at the end of an epoch and stop, and their commands to end."""
    owners = {_worker_of(trial) for trial in trials if is_trained(trial, folder)}
    for worker in owners | folder.live_workers():
        launch = worker.rpartition("-")[0]
        if launch:
            folder.launch_stop_request(launch).touch()


def _worker_of(trial: FrozenTrial) -> str:
    """Return the name of the worker that owns the trial, without its host."""
    return trial.user_attrs.get(OWNER, "").rpartition("/")[2]
