"""The upload process draws and uploads trials while they train: `python -m sweep.tracking.upload_process`.

MLflow runs in its own process because its import takes 2 s, and because it would hold the interpreter lock of the
training loop. The training process and the upload process exchange lines of JSON.

To the upload process:
    {"run": FOLDER, "store": [URI, ARTIFACT ROOT]}: upload this run from now on. URI and ARTIFACT ROOT may be null.
    {"study": FOLDER, "store": ...}: upload this study and all of its trials from now on.
    {"trials": FOLDER, "store": ...}: upload the trials of this study from now on. The study's own run is another's.
    {"finish": FOLDER}: send everything that is left of this run or study, and reply.

From the upload process:
    {"finishing": FOLDER, "undrawn": TEXT}: the curves of a run cannot be drawn, for this reason.
    {"finishing": FOLDER, "left": N}: N runs of a study are left to send. Sent about once a second.
    {"finished": FOLDER, "problem": TEXT or null, "damaged": BOOL}: the reply to "finish". "damaged" is true if the
        problem is a damaged record.

When its standard input closes, the upload process sends everything that is left and exits.
"""

import fcntl
import importlib
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sweep.figures.drawing import drawing_problem, import_matplotlib
from sweep.tracking import journal
from sweep.tracking.curves_plot import ensure_curves
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.tracking.store import Store
from sweep.tracking.study_upload import PUSH_EVERY_S, RETRY_EVERY_S, Damage, StudyUpload, attempt
from sweep.utils.command_line import secure_streams
from sweep.utils.ownership import remove_made
from sweep.utils.paths import UPLOAD_LOG
from sweep.utils.private import private

if TYPE_CHECKING:
    from sweep.tracking.mlflow_client import Uploader

log = logging.getLogger(__name__)


class UploadProcess:
    """The training process's handle on an upload process. If the upload process dies, training continues."""

    def __init__(self, output_dir: Path) -> None:
        """Start the process. What it cannot send goes to the log in `output_dir`."""
        self._log, self._has_begun = output_dir / UPLOAD_LOG, list[Callable[[], bool]]()
        errors, self._made_log = _open_log(self._log)
        with errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sweep.tracking.upload_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # Ctrl-C only stops the trial; the upload process then sends what is left
            )
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read_answers, daemon=True)
        self._reader.start()

    def add_run(self, folder: RunFolder, store: Store) -> None:
        """Upload the run to the store from now on. If tracking is off, only its curves are drawn."""
        self._has_begun.append(folder.journal.exists)
        self._write({"run": str(folder.path), "store": _as_json(store)})

    def add_study(self, folder: StudyFolder, store: Store) -> None:
        """Upload the study and all trials in its folder from now on. Any process may train them."""
        self._has_begun.append(folder.run.journal.exists)
        self._write({"study": str(folder.path), "store": _as_json(store)})

    def add_trials(self, folder: StudyFolder, store: Store) -> None:
        """Upload all trials in the study's folder from now on, on a machine that does not have the study's own run."""
        self._has_begun.append(lambda: bool(folder.runs()))
        self._write({"trials": str(folder.path), "store": _as_json(store)})

    def finish(
        self, folder: RunFolder, timeout_s: float, undrawn: Callable[[str], None] = lambda problem: None
    ) -> str | None:
        """Wait until the run is drawn and uploaded.

        Args:
            folder: the run's folder.
            timeout_s: how long to wait, in seconds.
            undrawn: called with the reason if the curves cannot be drawn. The run is uploaded anyway.

        Returns:
            None if everything was uploaded, else the problem in one line. It is a `Damage` if a record is damaged.
        """
        return self._finish(folder.path, timeout_s, undrawn=undrawn)

    def finish_study(
        self, folder: StudyFolder, timeout_s: float, progress: Callable[[int], None] = lambda n_left: None
    ) -> str | None:
        """Wait until all trials of the study, and then the study itself, are uploaded.

        Args:
            folder: the study's folder.
            timeout_s: how long to wait, in seconds.
            progress: called about once a second with the maximum number of runs that are left.

        Returns:
            None if everything was uploaded, else the problem in one line. It is a `Damage` if a record is damaged.
        """
        return self._finish(folder.path, timeout_s, progress=progress)

    def _finish(
        self,
        path: Path,
        timeout_s: float,
        progress: Callable[[int], None] = lambda n_left: None,
        undrawn: Callable[[str], None] = lambda problem: None,
    ) -> str | None:
        self._write({"finish": str(path)})
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                answer = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return f"MLflow did not finish within {timeout_s:g} s"
            if answer.get("finishing") == str(path) and "left" in answer:
                progress(answer["left"])
            elif answer.get("finishing") == str(path):
                undrawn(answer["undrawn"])
            if answer.get("finished") == str(path):
                return Damage(answer["problem"]) if answer["damaged"] else answer["problem"]
            if "ended" in answer:
                return f"the upload process ended early, see {self._log}"

    def close(self) -> None:
        """Close the upload process's input, so that it sends what is left and exits. Do not wait for it.

        If no run has begun, kill it and remove a log that it created.
        """
        assert self._process.stdin is not None
        if not any(has_begun() for has_begun in self._has_begun):
            self._process.kill()  # it may be importing MLflow
            self._reader.join()
            self._remove_log()
        with suppress(BrokenPipeError):  # it has exited already
            self._process.stdin.close()

    def _remove_log(self) -> None:
        """Remove the log if this process created it and it is empty."""
        with suppress(OSError), open(self._log, "rb") as log:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if another upload process may still write to it
            if self._made_log and os.fstat(log.fileno()).st_size == 0:
                self._log.unlink()
        remove_made(self._log.parent)

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            self._answers.put({"ended": True})

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                self._answers.put(json.loads(line))
        self._answers.put({"ended": True})
        self._process.wait()  # so that no zombie remains


def _open_log(log: Path) -> tuple[IO[bytes], bool]:
    """Open the log for appending. Return it, and True if it is new. It is locked, so that nobody removes it."""
    while True:
        log.parent.mkdir(parents=True, exist_ok=True)
        is_new = not log.exists()
        errors = open(log, "ab", opener=private)  # noqa: SIM115  # the caller closes it
        fcntl.flock(errors, fcntl.LOCK_SH)
        if os.fstat(errors.fileno()).st_nlink > 0:  # otherwise another process has just removed it
            return errors, is_new
        errors.close()


class _Uploads:
    """What the upload process is uploading."""

    def __init__(self, answer: Callable[[dict[str, Any]], None]) -> None:
        self._answer = answer
        self._runs: dict[str, Store] = {}  # by folder
        self._studies: dict[str, StudyUpload] = {}
        self._uploaders: dict[Store, Uploader] = {}
        self._next_push = 0.0

    def run(self, messages: "queue.Queue[dict[str, Any] | None]") -> None:
        """Handle messages until None, which means that the input has closed. Then send everything that is left."""
        while True:
            wait_s = max(0.0, self._next_push - time.monotonic()) if self._runs or self._studies else None
            try:
                message = messages.get(timeout=wait_s)
            except queue.Empty:
                self._push_all(lambda: not messages.empty())
                continue
            if message is None:
                break
            if "finish" in message:
                name = message["finish"]
                problem = self._finish(name)
                self._answer({"finished": name, "problem": problem, "damaged": isinstance(problem, Damage)})
            else:
                uri, root = message["store"]
                self._add(message, Store(uri, None if root is None else Path(root)))
        for name in [*self._runs, *self._studies]:
            self._finish(name)

    def _add(self, message: dict[str, Any], store: Store) -> None:
        """Add a run or a study, and import slow modules while the trial trains.

        A new store is created only once a run has begun, so that a run that is refused leaves no store behind.
        """
        if store.uri and store.lock is not None and not store.lock.exists():
            attempt(lambda: importlib.import_module("sweep.tracking.mlflow_client"))
        elif store.uri:
            attempt(lambda: self._uploader(store))
        if "run" in message:
            self._runs[message["run"]] = store
            if store.uri:
                attempt(lambda: importlib.import_module("sweep.tracking.mlflow_models"))
            drawing_problem(import_matplotlib)
        elif store.uri:
            name = message.get("study") or message["trials"]
            self._studies[name] = StudyUpload(
                StudyFolder(name),
                lambda: self._uploader(store),
                is_parents="study" in message,
                with_copies=store.is_file,
            )

    def _push_all(self, should_stop: Callable[[], bool]) -> None:
        problems = [attempt(lambda n=name, s=store: self._push(n, s)) for name, store in self._runs.items()]
        for study in self._studies.values():
            attempt(lambda s=study: s.push_news(should_stop))
        self._next_push = time.monotonic() + (RETRY_EVERY_S if any(problems) else PUSH_EVERY_S)

    def _finish(self, name: str) -> str | None:
        study, store = self._studies.pop(name, None), self._runs.pop(name, None)
        if study is not None:
            return study.finish(lambda n_left: self._answer({"finishing": name, "left": n_left}))
        run = RunFolder(name)
        if store is None or journal.first(run.journal, "start") is None:
            return None  # an untracked study, or a trial that was refused before it started
        if _has_curves(run) and (problem := drawing_problem(lambda: ensure_curves(run))) is not None:
            log.warning("cannot draw %s: %s", run.curves, problem)
            self._answer({"finishing": name, "undrawn": problem})
        return attempt(lambda: self._push(name, store, last=True))

    def _push(self, name: str, store: Store, last: bool = False) -> None:
        run = RunFolder(name)
        if store.uri and run.journal.exists():
            self._uploader(store).push(run)
            if last:
                self._uploader(store).abandon(run)

    def _uploader(self, store: Store) -> "Uploader":
        if store not in self._uploaders:
            from sweep.tracking.mlflow_client import Uploader

            self._uploaders[store] = Uploader(store)
        return self._uploaders[store]


def _as_json(store: Store) -> list[str | None]:
    return [store.uri, None if store.artifact_root is None else str(store.artifact_root)]


def _has_curves(run: RunFolder) -> bool:
    """Return whether the run's curves should be drawn. Its `end` lists the artifacts, which may not include them."""
    end = journal.last_of(run.journal, "end") or {}
    return run.curves.name in end.get("artifacts", [run.curves.name])


def main() -> None:
    secure_streams()
    logging.basicConfig(format="%(asctime)s %(name)s %(message)s", level=logging.WARNING)
    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    messages: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            messages.put(json.loads(line))
        messages.put(None)

    threading.Thread(target=listen, daemon=True).start()
    answers: IO[str] = sys.stdout
    sys.stdout = sys.stderr  # so that output printed by a library is not read as a reply

    def answer(message: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # the training process has exited
            print(json.dumps(message), file=answers, flush=True)

    _Uploads(answer).run(messages)


if __name__ == "__main__":
    main()
