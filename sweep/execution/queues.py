"""Chooses the queue of a study by its storage."""

from optuna.storages import BaseStorage

from sweep.execution.queue import TrialQueue
from sweep.execution.storage_queue import StorageQueue
from sweep.storage.lock import StudyLock
from sweep.storage.storage import as_database
from sweep.tracking.folders import StudyFolder


def open_queue(
    storage: BaseStorage, url: str | None, study_name: str, folder: StudyFolder, worker: str, max_retries: int
) -> TrialQueue:
    """Open the queue of an existing study.

    Args:
        storage: the study's storage, open.
        url: what it was opened with.
        study_name: the study's name.
        folder: its folder.
        worker: the name of the worker that uses the queue.
        max_retries: how often a trial's worker may die without progress before the trial fails.
    """
    lock = StudyLock(url, folder)
    if (database := as_database(storage)) is None:
        return StorageQueue(storage, study_name, folder, lock, worker, max_retries)
    from sweep.execution.database_queue import DatabaseQueue  # imports SQLAlchemy

    return DatabaseQueue(database, study_name, folder, lock, worker, max_retries)
