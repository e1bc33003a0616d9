"""A helper process that draws and mirrors trials while they train: `python -m sweep.record.follow`.

In a process of its own, MLflow costs the training loop neither its import (2 s) nor the interpreter lock. Both sides
speak lines of JSON. In comes {"follow": FOLDER, "store": [URI, ARTIFACT ROOT]}, with nulls for none, and later
{"finish": FOLDER}; out goes {"finished": FOLDER, "problem": TEXT or null}. When its standard input closes, it sends
what is left and ends.
"""

import json
import logging
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from sweep.errors import one_line
from sweep.record import journal
from sweep.record.folder import Busy, RunFolder
from sweep.record.plot import ensure_curves, load_matplotlib
from sweep.record.store import Store

_PUSH_EVERY_S = 1.0
_RETRY_EVERY_S = 5.0


class Follower:
    """The trial's side: starts the helper and speaks to it. A helper that dies costs the mirror, never the trial."""

    def __init__(self, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with open(log, "ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sweep.record.follow"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # Ctrl-C is for the trial; the helper then sends what is left
            )
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def follow(self, folder: RunFolder, store: Store) -> None:
        """Mirrors the trial to the store from now on; without tracking it is only drawn."""
        root = None if store.artifact_root is None else str(store.artifact_root)
        self._say({"follow": str(folder.path), "store": [store.uri, root]})

    def finish(self, folder: RunFolder, timeout_s: float) -> str | None:
        """Waits until the trial is drawn and mirrored; otherwise what is in the way, in one line."""
        self._say({"finish": str(folder.path)})
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                answer = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return f"MLflow is not done after {timeout_s:g} s"
            if answer.get("finished") == str(folder.path):
                return answer["problem"]
            if "ended" in answer:
                return f"the mirror process ended early, see {self._log}"

    def close(self) -> None:
        """Lets the helper finish what it has been given, and go."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is gone already
            self._process.stdin.close()

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


class _Helper:
    """The helper's side."""

    def __init__(self, answer: Callable[[dict[str, Any]], None]) -> None:
        self._answer = answer
        self._followed: dict[str, Store] = {}  # by folder
        self._mirrors: dict[Store, Any] = {}
        self._next_push = 0.0

    def run(self, messages: "queue.Queue[dict[str, Any] | None]") -> None:
        """Until the other side hangs up, which `None` stands for."""
        while True:
            wait_s = max(0.0, self._next_push - time.monotonic()) if self._followed else None
            try:
                message = messages.get(timeout=wait_s)
            except queue.Empty:
                self._push_all()
                continue
            if message is None:
                break
            if "follow" in message:
                uri, root = message["store"]
                store = Store(uri, None if root is None else Path(root))
                self._followed[message["follow"]] = store
                self._warm_up(store)
            else:
                name = message["finish"]
                self._answer({"finished": name, "problem": self._finish(name, self._followed.pop(name))})
        for name, store in self._followed.items():
            self._finish(name, store)

    def _warm_up(self, store: Store) -> None:
        """Loads what is slow to load while the trial trains."""
        if store.uri:
            _attempt(lambda: self._mirror(store))
        _attempt(load_matplotlib)

    def _push_all(self) -> None:
        problems = [_attempt(lambda n=name, s=store: self._push(n, s)) for name, store in self._followed.items()]
        self._next_push = time.monotonic() + (_RETRY_EVERY_S if any(problems) else _PUSH_EVERY_S)

    def _finish(self, name: str, store: Store) -> str | None:
        run = RunFolder(name)
        if journal.first(run.journal, "start") is None:
            return None  # the trial was refused before it started
        return _attempt(lambda: ensure_curves(run)) or _attempt(lambda: self._push(name, store, last=True))

    def _push(self, name: str, store: Store, last: bool = False) -> None:
        run = RunFolder(name)
        if store.uri and run.journal.exists():
            self._mirror(store).push(run)
            if last:
                self._mirror(store).abandon(run)

    def _mirror(self, store: Store) -> Any:
        if store not in self._mirrors:
            from sweep.record.mlflow import Mirror

            self._mirrors[store] = Mirror(store)
        return self._mirrors[store]


def _attempt(action: Callable[[], Any]) -> str | None:
    """What went wrong, in one line; the log has the rest. Whatever it is, a mirror must not fail a trial."""
    try:
        action()
    except Busy:
        return "another process is sending it"
    except Exception as error:
        logging.getLogger(__name__).exception("cannot mirror")
        return one_line(error)
    return None


def main() -> None:
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
    _Helper(lambda answer: print(json.dumps(answer), file=answers, flush=True)).run(messages)


if __name__ == "__main__":
    main()
