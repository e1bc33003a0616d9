"""A helper process that draws and mirrors trials while they train: `python -m sweep.tracking.upload_process`.

In a process of its own, MLflow costs the training loop neither its import (2 s) nor the interpreter lock. Both sides
speak lines of JSON. In comes {"run": FOLDER, "store": [URI, ARTIFACT ROOT]}, with nulls for none, or "study"
for a study's folder and all trials in it, and later {"finish": FOLDER}; out goes {"finished": FOLDER, "problem": TEXT
or null, "damaged": whether the problem is a damaged record}. Before it comes {"finishing": FOLDER, "undrawn": TEXT} for
a run whose curves could not be drawn, and now and then {"finishing": FOLDER, "left": RUNS} for a study. When its
standard input closes, it sends what is left and ends.
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

from sweep.figures.drawing import drawing_problem, load_matplotlib
from sweep.tracking import journal
from sweep.tracking.curves_plot import ensure_curves
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.tracking.store import Store
from sweep.tracking.study_upload import PUSH_EVERY_S, RETRY_EVERY_S, Damage, StudyUpload, attempt
from sweep.utils.command_line import secure_streams
from sweep.utils.ownership import remove_made
from sweep.utils.private import private

if TYPE_CHECKING:
    from sweep.tracking.mlflow_client import Uploader

log = logging.getLogger(__name__)


class UploadProcess:
    """The trial's side: starts the helper and speaks to it. A helper that dies costs the mirror, never the trial."""

    def __init__(self, log: Path) -> None:
        self._log, self._runs = log, list[RunFolder]()
        errors, self._made_log = _opened(log)
        with errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sweep.tracking.upload_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # Ctrl-C is for the trial; the helper then sends what is left
            )
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def add_run(self, folder: RunFolder, store: Store) -> None:
        """Mirrors the trial to the store from now on; without tracking it is only drawn."""
        self._runs.append(folder)
        self._say({"run": str(folder.path), "store": _spelled(store)})

    def add_study(self, folder: StudyFolder, store: Store) -> None:
        """Mirrors the study and every trial in its folder, whichever process trains it, from now on."""
        self._runs.append(folder.run)
        self._say({"study": str(folder.path), "store": _spelled(store)})

    def finish(
        self, folder: RunFolder, timeout_s: float, undrawn: Callable[[str], None] = lambda problem: None
    ) -> str | None:
        """Wait until the trial is drawn and mirrored. Return in one line why it is not mirrored.

        undrawn: called with the reason if the curves cannot be drawn, which does not keep the trial from being sent.
        """
        return self._finish(folder.path, timeout_s, undrawn=undrawn)

    def finish_study(
        self, folder: StudyFolder, timeout_s: float, progress: Callable[[int], None] = lambda n_left: None
    ) -> str | None:
        """Waits until all trials of the study and then the study itself are mirrored; otherwise what is in the way.

        progress: called about once a second with the number of trials that are left, at most.
        """
        return self._finish(folder.path, timeout_s, progress=progress)

    def _finish(
        self,
        path: Path,
        timeout_s: float,
        progress: Callable[[int], None] = lambda n_left: None,
        undrawn: Callable[[str], None] = lambda problem: None,
    ) -> str | None:
        self._say({"finish": str(path)})
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                answer = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return f"MLflow is not done after {timeout_s:g} s"
            if answer.get("finishing") == str(path) and "left" in answer:
                progress(answer["left"])
            elif answer.get("finishing") == str(path):
                undrawn(answer["undrawn"])
            if answer.get("finished") == str(path):
                return Damage(answer["problem"]) if answer["damaged"] else answer["problem"]
            if "ended" in answer:
                return f"the mirror process ended early, see {self._log}"

    def close(self) -> None:
        """Let the helper finish what it has been given, and go. If no run has begun, it leaves no new log."""
        assert self._process.stdin is not None
        if not any(run.journal.exists() for run in self._runs):
            self._process.kill()  # it may be importing MLflow
            self._listener.join()
            self._remove_log()
        with suppress(BrokenPipeError):  # it is gone already
            self._process.stdin.close()

    def _remove_log(self) -> None:
        """Remove the log if this process made it, and nothing is in it."""
        with suppress(OSError), open(self._log, "rb") as log:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while the helper of another process may write
            if self._made_log and os.fstat(log.fileno()).st_size == 0:
                self._log.unlink()
        remove_made(self._log.parent)

    def _say(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            self._answers.put({"ended": True})

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                self._answers.put(json.loads(line))
        self._answers.put({"ended": True})
        self._process.wait()  # leaves no zombie behind


def _opened(log: Path) -> tuple[IO[bytes], bool]:
    """Open the log to append to it. Return it, and whether it is new. It is locked, so that nobody removes it."""
    while True:
        log.parent.mkdir(parents=True, exist_ok=True)
        is_new = not log.exists()
        errors = open(log, "ab", opener=private)  # noqa: SIM115  # the caller closes it
        fcntl.flock(errors, fcntl.LOCK_SH)
        if os.fstat(errors.fileno()).st_nlink > 0:  # else another process removed it meanwhile
            return errors, is_new
        errors.close()


class _Helper:
    """The helper's side."""

    def __init__(self, answer: Callable[[dict[str, Any]], None]) -> None:
        self._answer = answer
        self._runs: dict[str, Store] = {}  # by folder
        self._studies: dict[str, StudyUpload] = {}
        self._uploaders: dict[Store, Uploader] = {}
        self._next_push = 0.0

    def run(self, messages: "queue.Queue[dict[str, Any] | None]") -> None:
        """Until the other side hangs up, which `None` stands for."""
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
        """From now on; and loads what is slow to load while the trial trains.

        A new store is made once a run has begun: one that is refused before leaves none.
        """
        if store.uri and store.lock is not None and not store.lock.exists():
            attempt(lambda: importlib.import_module("sweep.tracking.mlflow_client"))
        elif store.uri:
            attempt(lambda: self._uploader(store))
        if "run" in message:
            self._runs[message["run"]] = store
            drawing_problem(load_matplotlib)
        elif store.uri:
            folder = StudyFolder(message["study"])
            self._studies[message["study"]] = StudyUpload(folder, lambda: self._uploader(store))

    def _push_all(self, is_called: Callable[[], bool]) -> None:
        problems = [attempt(lambda n=name, s=store: self._push(n, s)) for name, store in self._runs.items()]
        for study in self._studies.values():
            attempt(lambda s=study: s.push_news(is_called))
        self._next_push = time.monotonic() + (RETRY_EVERY_S if any(problems) else PUSH_EVERY_S)

    def _finish(self, name: str) -> str | None:
        study, store = self._studies.pop(name, None), self._runs.pop(name, None)
        if study is not None:
            return study.finish(lambda n_left: self._answer({"finishing": name, "left": n_left}))
        run = RunFolder(name)
        if store is None or journal.first(run.journal, "start") is None:
            return None  # an untracked study, or the trial was refused before it started
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


def _spelled(store: Store) -> list[str | None]:
    return [store.uri, None if store.artifact_root is None else str(store.artifact_root)]


def _has_curves(run: RunFolder) -> bool:
    """Whether a trial has its curves drawn; its end may leave them out."""
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
    sys.stdout = sys.stderr  # a library's print must not be taken for an answer

    def answer(message: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # nobody waits for it any more
            print(json.dumps(message), file=answers, flush=True)

    _Helper(answer).run(messages)


if __name__ == "__main__":
    main()
