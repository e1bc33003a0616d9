"""Whether a worker's machine shares the folder of the study's command; if not, who uploads what is trained there.

The command's upload process sees only its own folder. On a machine without it, one of the study's workers has an upload
process, which sends the runs of all workers there.
"""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import optuna
from optuna.storages import BaseStorage

from sweep.execution.plan import WorkerPlan
from sweep.storage.url import kind
from sweep.tracking.chunks import may_send, most_sent
from sweep.tracking.folders import Busy
from sweep.tracking.journal import complete_size
from sweep.tracking.provenance import sync_command
from sweep.tracking.run_copies import KEY
from sweep.tracking.upload_process import UploadProcess
from sweep.utils.background import in_background
from sweep.utils.environment import environment
from sweep.utils.errors import ConfigError
from sweep.utils.passwords import without_passwords

log = logging.getLogger("sweep")

_PATIENCE_S, _POLL_S = 3.0, 0.2  # until a network's file system shows a new file
_LOOK_EVERY_S = 5.0  # for a request to stop
_STOP = "stop"  # with the name of a launch, a user attribute of the study: its workers must stop
_LEAVE_AFTER_S = 60.0  # a worker that ends waits so long for MLflow

REMEDY = "MLFLOW_TRACKING_URI=http://host:5000 in front of the command, or hydra.sweeper.artifacts=s3://bucket/folder"


def shares_folder(plan: WorkerPlan) -> bool:
    """Return whether this worker sees the study's folder as the command that launched it does."""
    mark = plan.folder.launch_mark(plan.launch)
    deadline = time.monotonic() + (_PATIENCE_S if plan.folder.workers.is_dir() else 0.0)
    while not mark.exists():
        if time.monotonic() >= deadline:
            return False
        with suppress(OSError):
            mark.parent.chmod(mark.parent.stat().st_mode)  # so that NFS looks for new files
        time.sleep(_POLL_S)
    return True


def check_node(plan: WorkerPlan) -> None:
    """Raise ConfigError if what a machine without the command's folder trains would be lost."""
    host = socket.gethostname()
    here = f"host '{host}' does not share output_dir '{plan.folder.path.parent.parent}' with the study's command"
    if kind(plan.settings.storage) != "postgresql":
        remedy = "share it, or add hydra.sweeper.storage=postgresql+psycopg://user:password@host/database"
        raise ConfigError("hydra.sweeper.storage", f"{here}, so it has no access to the study; {remedy}")
    if plan.copies is not None:
        plan.copies.check_begun()
    elif plan.store.is_file:
        raise ConfigError(KEY, f"{here}, so MLflow would lack its runs; share it, or add {REMEDY}")


@contextmanager
def uploading(plan: WorkerPlan) -> Iterator["NodeUpload"]:
    """Prepare a machine without the command's folder: runs that are trained in the `with` block are uploaded from here.

    Raises ConfigError as `check_node` does.
    """
    check_node(plan)
    upload = NodeUpload(plan)
    variables = {} if plan.store.uri is None or plan.store.is_in_outputs else {"MLFLOW_TRACKING_URI": plan.store.uri}
    with environment(variables):  # which a launcher may not pass on
        try:
            yield upload
        finally:
            upload.end()


def announce_stop(study: optuna.Study, plan: WorkerPlan) -> None:
    """Note in the storage that the workers of a launch must stop, for machines that do not see the command's files."""
    study.set_user_attr(f"{_STOP}-{plan.launch}", True)


@contextmanager
def heeding_stops(plan: WorkerPlan, storage: BaseStorage) -> Iterator[None]:
    """Stop the workers of this machine when the storage says so, inside the `with` block. See `announce_stop`."""

    def look(over: threading.Event) -> None:
        while not over.wait(_LOOK_EVERY_S):
            with suppress(Exception):  # an outage; other calls report it
                study_id = storage.get_study_id_from_name(plan.name)
                if f"{_STOP}-{plan.launch}" in storage.get_study_user_attrs(study_id):
                    plan.stop_request.touch()
                    return

    with in_background(look):
        yield


class NodeUpload:
    """The upload of what is trained on a machine without the command's folder, as one of its workers sees it."""

    def __init__(self, plan: WorkerPlan) -> None:
        """Prepare to upload. Nothing is started yet."""
        self._plan, self._open = plan, ExitStack()
        self._process: UploadProcess | None = None

    def begin(self) -> None:
        """Start the upload process, unless this worker has begun before or another worker of this machine has."""
        store = self._plan.store
        if self._process is not None or store.uri is None or store.is_file:
            return
        folder = self._plan.folder
        with suppress(Busy):
            self._open.enter_context(folder.node_lock())
            self._process = UploadProcess(folder.path.parent.parent)
            self._open.callback(self._process.close)
            self._process.add_trials(folder, store)

    def end(self) -> None:
        """Wait until MLflow has what was trained here, or another worker sends it. If it lacks something, warn."""
        deadline = time.monotonic() + _LEAVE_AFTER_S
        while self._process is None and self._is_behind() and time.monotonic() < deadline:
            self.begin()
            time.sleep(_POLL_S)
        problem = "it did not get it in time" if self._process is None and self._is_behind() else None
        if self._process is not None:
            problem = self._process.finish_study(self._plan.folder, _LEAVE_AFTER_S)
        if problem is not None:
            later = sync_command(self._plan.folder.path.parent.parent, self._plan.store)
            message = f"MLflow lacks some runs of host '{socket.gethostname()}' ({problem}); there:  {later}"
            log.warning("warning: %s", without_passwords(message))
        self._open.close()

    def _is_behind(self) -> bool:
        if self._plan.store.uri is None or self._plan.store.is_file:
            return False
        ended = (run for run in self._plan.folder.runs() if not run.is_running())
        return any(most_sent(run) < min(may_send(run), complete_size(run.journal)) for run in ended)
