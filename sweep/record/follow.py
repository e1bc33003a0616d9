"""A helper process that draws and mirrors trials while they train: `python -m sweep.record.follow`.

In a process of its own, MLflow costs the training loop neither its import (2 s) nor the interpreter lock. Both sides
speak lines of JSON. In comes {"follow": FOLDER, "store": [URI, ARTIFACT ROOT]}, with nulls for none, or "follow_study"
for a study's folder and all trials in it, and later {"finish": FOLDER}; out goes {"finished": FOLDER, "problem": TEXT
or null}, and before it, for a study, {"finishing": FOLDER, "left": RUNS} now and then. When its standard input closes,
it sends what is left and ends.
"""

import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sweep.errors import one_line
from sweep.record import journal
from sweep.record.folder import Busy, RunFolder, StudyFolder
from sweep.record.plot import ensure_curves, load_matplotlib
from sweep.record.store import Store

if TYPE_CHECKING:
    from sweep.record.mlflow import Mirror

_PUSH_EVERY_S = 1.0
_PUSH_UNFINISHED_EVERY_S = 5.0  # trials of a study; one that ends sooner is sent in one go, for half the price
_RETRY_EVERY_S = 5.0
_RETRY_AT_LEAST_EVERY_S = 60.0
_PATIENCE_S = 10.0  # with other processes that send the last of a study
_SETTLING_NS = 2_000_000_000  # a folder's time of modification may stand still for less
_BUSY = "another process is sending it"


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
        self._say({"follow": str(folder.path), "store": _spelled(store)})

    def follow_study(self, folder: StudyFolder, store: Store) -> None:
        """Mirrors the study and every trial in its folder, whichever process trains it, from now on."""
        self._say({"follow_study": str(folder.path), "store": _spelled(store)})

    def finish(self, folder: RunFolder, timeout_s: float) -> str | None:
        """Waits until the trial is drawn and mirrored; otherwise what is in the way, in one line."""
        return self._finish(folder.path, timeout_s, lambda n_left: None)

    def finish_study(
        self, folder: StudyFolder, timeout_s: float, progress: Callable[[int], None] = lambda n_left: None
    ) -> str | None:
        """Waits until all trials of the study and then the study itself are mirrored; otherwise what is in the way.

        progress: called about once a second with the number of trials that are left, at most.
        """
        return self._finish(folder.path, timeout_s, progress)

    def _finish(self, path: Path, timeout_s: float, progress: Callable[[int], None]) -> str | None:
        self._say({"finish": str(path)})
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                answer = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return f"MLflow is not done after {timeout_s:g} s"
            if answer.get("finishing") == str(path):
                progress(answer["left"])
            if answer.get("finished") == str(path):
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
        self._studies: dict[str, _Study] = {}
        self._mirrors: dict[Store, Mirror] = {}
        self._next_push = 0.0

    def run(self, messages: "queue.Queue[dict[str, Any] | None]") -> None:
        """Until the other side hangs up, which `None` stands for."""
        while True:
            wait_s = max(0.0, self._next_push - time.monotonic()) if self._followed or self._studies else None
            try:
                message = messages.get(timeout=wait_s)
            except queue.Empty:
                self._push_all(lambda: not messages.empty())
                continue
            if message is None:
                break
            if "finish" in message:
                name = message["finish"]
                self._answer({"finished": name, "problem": self._finish(name)})
            else:
                uri, root = message["store"]
                self._follow(message, Store(uri, None if root is None else Path(root)))
        for name in [*self._followed, *self._studies]:
            self._finish(name)

    def _follow(self, message: dict[str, Any], store: Store) -> None:
        """From now on; and loads what is slow to load while the trial trains."""
        if store.uri:
            _attempt(lambda: self._mirror(store))
        if "follow" in message:
            self._followed[message["follow"]] = store
            _attempt(load_matplotlib)
        elif store.uri:
            folder = StudyFolder(message["follow_study"])
            self._studies[message["follow_study"]] = _Study(folder, lambda: self._mirror(store))

    def _push_all(self, is_called: Callable[[], bool]) -> None:
        problems = [_attempt(lambda n=name, s=store: self._push(n, s)) for name, store in self._followed.items()]
        for study in self._studies.values():
            _attempt(lambda s=study: s.push_news(is_called))
        self._next_push = time.monotonic() + (_RETRY_EVERY_S if any(problems) else _PUSH_EVERY_S)

    def _finish(self, name: str) -> str | None:
        study, store = self._studies.pop(name, None), self._followed.pop(name, None)
        if study is not None:
            return study.finish(lambda n_left: self._answer({"finishing": name, "left": n_left}))
        run = RunFolder(name)
        if store is None or journal.first(run.journal, "start") is None:
            return None  # an untracked study, or the trial was refused before it started
        drawn = _attempt(lambda: ensure_curves(run)) if _has_curves(run) else None
        return drawn or _attempt(lambda: self._push(name, store, last=True))

    def _push(self, name: str, store: Store, last: bool = False) -> None:
        run = RunFolder(name)
        if store.uri and run.journal.exists():
            self._mirror(store).push(run)
            if last:
                self._mirror(store).abandon(run)

    def _mirror(self, store: Store) -> "Mirror":
        if store not in self._mirrors:
            from sweep.record.mlflow import Mirror

            self._mirrors[store] = Mirror(store)
        return self._mirrors[store]


class _Tracked:
    """A run of a study, as far as the helper has looked at it.

    size: bytes of its journal. n_sent: bytes when it was last pushed. due: when it may be pushed next. status: how it
    ended, if it has. problem: why the last push failed. settled: it is finished, and all of it is sent.
    """

    def __init__(self, run: RunFolder, due: float) -> None:
        self.run = run
        self.due = due
        self.size = self.n_sent = 0
        self.status: str | None = None
        self.problem: str | None = None
        self.settled = False
        self._n_read = 0
        self._retry_s = _RETRY_EVERY_S

    def look(self) -> None:
        """Learns what is new in the journal. A run that has ended is due at once."""
        try:
            self.size = self.run.journal.stat().st_size
        except FileNotFoundError:  # it has yet to begin, or was deleted
            self.size = 0
        before = self.status
        if self.size > self._n_read:
            _attempt(self._read, known=self.problem)  # pushing it says what is wrong
        if self.status is not None and before is None and self.problem is None:
            self.due = 0.0

    def _read(self) -> None:
        for record, end in journal.read(self.run.journal, self._n_read):
            self._n_read = end
            if record["kind"] in ("start", "end"):
                self.status = record.get("status")

    def has_news(self) -> bool:
        return self.size not in (0, self.n_sent)

    def push(self, mirror: Callable[[], "Mirror"], last: bool = False) -> str | None:
        """Sends what is new; what went wrong, in one line. last: marks a run whose process died without an end."""
        size = self.size

        def send() -> None:
            is_complete = mirror().has_all(self.run) or mirror().push(self.run)
            if last and self.status is None:
                mirror().abandon(self.run)
            self.n_sent = size
            self.settled = is_complete and self.status == "FINISHED"

        problem = _attempt(send, known=self.problem)
        now = time.monotonic()
        if problem is None:
            self.due, self._retry_s = now + _PUSH_UNFINISHED_EVERY_S, _RETRY_EVERY_S
        elif problem == _BUSY:
            self.due = now + _PUSH_EVERY_S
        else:
            self.due, self._retry_s = now + self._retry_s, min(2 * self._retry_s, _RETRY_AT_LEAST_EVERY_S)
        self.problem = problem
        return problem


class _Study:
    """Mirrors a study's own run and those of its trials, which other processes train."""

    def __init__(self, folder: StudyFolder, mirror: Callable[[], "Mirror"]) -> None:
        self._folder, self._mirror = folder, mirror
        self._own = _Tracked(folder.run, due=0.0)
        self._trials: dict[str, _Tracked] = {}  # by folder, like the next two
        self._settled: set[str] = set()  # runs that need not be looked at again
        self._listed: dict[str, int] = {}  # times of modification of trials whose runs have all begun
        self._down: str | None = None  # why the store did not answer
        self._next_try = 0.0

    def push_news(self, is_called: Callable[[], bool]) -> None:
        """Sends what is new, until all is sent, the store is down, or the helper is called away."""
        now = time.monotonic()
        if now < self._next_try or (self._down and self._is_down()):
            return
        for run in self._begun():
            self._trials.setdefault(str(run.path), _Tracked(run, due=now + _PUSH_UNFINISHED_EVERY_S))
        failed_last = sorted(self._trials.items(), key=lambda item: item[1].problem is not None)
        for path, tracked in (("", self._own), *failed_last):
            if is_called():
                return
            tracked.look()
            if tracked.has_news() and tracked.due <= now:
                problem = tracked.push(self._mirror)
                if problem not in (None, _BUSY) and self._is_down():
                    return
            if tracked.settled and path:
                self._settled.add(path)
                del self._trials[path]

    def finish(self, progress: Callable[[int], None]) -> str | None:
        """Sends all that is left, the study's own run last; what is in the way, in one line."""
        self._down = None
        begun = {str(run.path): run for run in self._folder.runs()}
        trials = [
            self._trials.get(path, _Tracked(run, 0.0)) for path, run in begun.items() if path not in self._settled
        ]
        problems = self._send_all(trials, progress)
        if not self._down:
            problems += self._send_all([self._own], lambda n_left: None)
        if not problems:
            return None
        return problems[0] if self._down or len(problems) == 1 else f"{len(problems)} of its runs: {problems[0]}"

    def _send_all(self, left: Sequence[_Tracked], progress: Callable[[int], None]) -> list[str]:
        """Pushes each to its end, waiting for other processes that send; the problem of each that cannot be sent."""
        problems: list[str] = []
        next_progress, patience_ends = 0.0, time.monotonic() + _PATIENCE_S
        while left:
            busy: list[_Tracked] = []
            for i, tracked in enumerate(left):
                now = time.monotonic()
                if now >= next_progress:
                    progress(len(left) - i + len(busy))
                    next_progress = now + 1.0
                tracked.look()
                if tracked.status is not None and not tracked.has_news():
                    continue
                problem = tracked.push(self._mirror, last=True) if tracked.size else None
                if problem == _BUSY:
                    busy.append(tracked)
                    continue
                patience_ends = time.monotonic() + _PATIENCE_S
                if problem is not None:
                    problems.append(problem)
                    if self._is_down():
                        return problems
            if busy and time.monotonic() >= patience_ends:
                return problems + [_BUSY] * len(busy)
            if busy:
                time.sleep(0.1)
            left = busy
        return problems

    def _is_down(self) -> bool:
        """Whether the store does not answer, so that there is no use in trying other runs for a while."""
        self._down = _attempt(lambda: self._mirror().reach(), known=self._down)
        self._next_try = time.monotonic() + _RETRY_EVERY_S if self._down else 0.0
        return self._down is not None

    def _begun(self) -> Iterator[RunFolder]:
        """Runs that have begun and are not settled. Of a finished trial, at most its folder is looked at."""
        try:
            trials = [entry for entry in os.scandir(self._folder.trials) if entry.path not in self._settled]
        except FileNotFoundError:
            return
        for entry in trials:
            if not entry.is_dir() or self._listed.get(entry.path) == (modified := entry.stat().st_mtime_ns):
                continue
            replicates = [RunFolder(inner.path) for inner in os.scandir(entry) if inner.is_dir()]
            begun = [run for run in (RunFolder(entry.path), *replicates) if run.journal.exists()]
            yield from (run for run in begun if str(run.path) not in self._settled)
            if begun and len(begun) >= len(replicates) and modified < time.time_ns() - _SETTLING_NS:
                self._listed[entry.path] = modified


def _spelled(store: Store) -> list[str | None]:
    return [store.uri, None if store.artifact_root is None else str(store.artifact_root)]


def _has_curves(run: RunFolder) -> bool:
    """Whether a trial has its curves drawn; its end may leave them out."""
    ends = [record for record, _ in journal.read(run.journal) if record["kind"] == "end"]
    return not ends or run.curves.name in ends[-1].get("artifacts", [run.curves.name])


def _attempt(action: Callable[[], Any], known: str | None = None) -> str | None:
    """What went wrong, in one line; the log has the rest. Whatever it is, a mirror must not fail a trial.

    known: a problem that the log has already.
    """
    try:
        action()
    except Busy:
        return _BUSY
    except Exception as error:
        problem = one_line(error)
        if problem != known:
            logging.getLogger(__name__).exception("cannot mirror")
        return problem
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

    def answer(message: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # nobody waits for it any more
            print(json.dumps(message), file=answers, flush=True)

    _Helper(answer).run(messages)


if __name__ == "__main__":
    main()
