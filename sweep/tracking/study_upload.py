"""Uploads a study: its parent run, and the runs of its trials, which other processes train."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sweep.tracking import journal
from sweep.tracking.chunks import may_send
from sweep.tracking.folders import Busy, RunFolder, StudyFolder
from sweep.utils.errors import Damaged, one_line

if TYPE_CHECKING:
    from sweep.tracking.mlflow_client import Uploader

PUSH_EVERY_S = 1.0
RETRY_EVERY_S = 5.0
_PUSH_UNFINISHED_EVERY_S = 5.0  # a trial that ends sooner is sent all at once, for half the cost
_RETRY_AT_LEAST_EVERY_S = 60.0
_N_AT_ONCE = 100  # runs in a transaction; it blocks other writers of a SQLite store for 0.5 to 1 s
_PATIENCE_S = 10.0  # while other processes send the last runs of a study
_SETTLING_NS = 2_000_000_000  # a folder's modification time may stay the same for less than this
_BUSY = "another process is sending it"


class Damage(str):
    """A problem in one line: a record is damaged, so waiting does not help."""

    __slots__ = ()


def attempt(action: Callable[[], Any], known: str | None = None) -> str | None:
    """Run `action`. Return None, or in one line what went wrong; the log gets the traceback.

    No exception is raised, since a failed upload must never fail a trial.

    Args:
        action: what to run.
        known: a problem that has been logged already, and is not logged again.
    """
    try:
        action()
    except Busy:
        return _BUSY
    except Damaged as error:
        return Damage(error)
    except Exception as error:
        problem = one_line(error)
        if problem != known:
            logging.getLogger(__name__).exception("cannot upload")
        return problem
    return None


class _Tracked:
    """The upload state of one run of a study.

    Attributes:
        run: the run's folder.
        due: the time, by `time.monotonic`, from which it may be pushed again.
        size: the size of its journal in bytes.
        n_sent: the size of its journal at the last successful push, or how much of it might be sent then.
        status: how it ended; None if it has not.
        problem: why the last push failed; None if it succeeded.
        is_complete: whether the last push sent all of the journal.
    """

    def __init__(self, run: RunFolder, due: float) -> None:
        self.run = run
        self.due = due
        self.size = self.n_sent = 0
        self.status: str | None = None
        self.problem: str | None = None
        self.is_complete = False
        self._n_read = 0
        self._retry_s = RETRY_EVERY_S

    def look(self) -> None:
        """Update `size` and `status` from the journal. A run that has just ended is due at once."""
        self.size = _size(self.run)
        before = self.status
        if self.size > self._n_read:
            attempt(self._read, known=self.problem)  # a damaged journal is reported when it is pushed
        if self.status is not None and before is None and self.problem is None:
            self.due = 0.0

    def _read(self) -> None:
        record = journal.last(self.run.journal)  # after an end, only a start can follow
        self._n_read = self.size
        self.status = record["status"] if record is not None and record["kind"] == "end" else None

    def has_news(self) -> bool:
        return self.size not in (0, self.n_sent)

    def is_settled(self) -> bool:
        """Return whether the run has finished and was sent completely."""
        return self.is_complete and self.status == "FINISHED"

    def may_be_complete(self) -> bool:
        """Return whether the run has ended and no push of it was tried yet."""
        return self.status is not None and self.n_sent == 0 and self.problem is None

    def was_sent(self) -> None:
        self.n_sent, self.is_complete, self.problem = self.size, True, None

    def push(self, uploader: Callable[[], "Uploader"], last: bool = False) -> str | None:
        """Send what is new. Return None, or in one line what went wrong.

        Args:
            uploader: returns the uploader, or raises if the store is down.
            last: True if the study is over: a run that did not end is then marked as KILLED unless it is running.
        """
        size = self.size

        def send() -> None:
            self.is_complete = uploader().has_all(self.run) or uploader().push(self.run)
            if last and (self.status is None or not self.is_complete):
                uploader().abandon(self.run)
            self.n_sent = size if self.is_complete else min(size, may_send(self.run))

        problem = attempt(send, known=self.problem)
        now = time.monotonic()
        if problem is None:
            self.due, self._retry_s = now + _PUSH_UNFINISHED_EVERY_S, RETRY_EVERY_S
        elif problem == _BUSY:
            self.due = now + PUSH_EVERY_S
        else:
            self.due, self._retry_s = now + self._retry_s, min(2 * self._retry_s, _RETRY_AT_LEAST_EVERY_S)
        self.problem = problem
        return problem


def _size(run: RunFolder) -> int:
    """Return the size of the run's journal in bytes; 0 if it has not begun, or was deleted."""
    try:
        return run.journal.stat().st_size
    except FileNotFoundError:
        return 0


class StudyUpload:
    """Uploads a study's parent run and the runs of its trials, which other processes train."""

    def __init__(
        self,
        folder: StudyFolder,
        uploader: Callable[[], "Uploader"],
        is_parents: bool = True,
        with_copies: bool = True,
    ) -> None:
        """Prepare to upload.

        Args:
            folder: the study's folder.
            uploader: returns the uploader, or raises if the store is down.
            is_parents: False leaves the study's own run to another machine.
            with_copies: False leaves runs to the machine that trained them, if they are only copies here.
        """
        self._folder, self._uploader = folder, uploader
        self._is_parents, self._with_copies = is_parents, with_copies
        self._own = _Tracked(folder.run, due=0.0)
        self._trials: dict[str, _Tracked] = {}  # by folder, like the next two
        self._settled: dict[str, int] = {}  # sizes of the journals of runs that need no further look until the end
        self._listed: dict[str, int] = {}  # modification times of trials whose runs have all begun
        self._down: str | None = None  # why the store did not answer, if it did not
        self._next_try = 0.0
        self._n_lost = 0  # `Uploader.n_lost` when all runs were last checked again

    def push_news(self, should_stop: Callable[[], bool]) -> None:
        """Send what is new, until everything is sent, the store is down, or `should_stop` returns True."""
        now = time.monotonic()
        if now < self._next_try or (self._down and self._is_down()):
            return
        self._look_anew_if_lost()
        for run in self._begun():
            self._trials.setdefault(str(run.path), _Tracked(run, due=now + _PUSH_UNFINISHED_EVERY_S))
        for tracked in self._trials.values():
            tracked.look()
        self._send_complete(list(self._trials.values()), lambda n_left: None, should_stop)
        failed_last = sorted(self._trials.items(), key=lambda item: item[1].problem is not None)
        for path, tracked in (("", self._own), *failed_last):
            if should_stop():
                return
            if tracked is self._own:
                if not self._is_parents:
                    continue
                tracked.look()
            if tracked.has_news() and tracked.due <= now:
                problem = tracked.push(self._uploader)
                if problem not in (None, _BUSY) and self._is_down():
                    return
            if path and tracked.is_settled():
                self._settled[path] = tracked.n_sent
                del self._trials[path]

    def finish(self, progress: Callable[[int], None]) -> str | None:
        """Send everything that is left, the study's parent run last. Return None, or the problem in one line.

        `progress` is called about once a second with the maximum number of runs that are left.
        """
        self._down = None
        problem = self._finish(progress)
        return self._finish(progress) if self._look_anew_if_lost() else problem

    def _look_anew_if_lost(self) -> bool:
        """Check all runs again if the store has lost some, as after `mlflow gc`. Return whether it has."""
        before = self._n_lost
        attempt(self._count_lost)
        if self._n_lost == before:
            return False
        self._own = _Tracked(self._folder.run, due=0.0)
        for known in (self._trials, self._settled, self._listed):
            known.clear()
        return True

    def _count_lost(self) -> None:
        self._n_lost = self._uploader().n_lost

    def _finish(self, progress: Callable[[int], None]) -> str | None:
        begun = {str(run.path): run for run in self._folder.runs() if self._is_ours(run)}
        trials = [
            self._trials.get(path, _Tracked(run, 0.0))
            for path, run in begun.items()
            if self._settled.get(path) != _size(run)  # the model of the best trial is added late
        ]
        for tracked in trials:
            tracked.look()
        self._send_complete(trials, progress, lambda: False)
        problems = self._send_all(trials, progress)
        if not self._down and self._is_parents:
            problems += self._send_all([self._own], lambda n_left: None)
        if not problems:
            return None
        problems.sort(key=lambda problem: not isinstance(problem, Damage))
        if self._down or len(problems) == 1:
            return problems[0]
        return type(problems[0])(f"{len(problems)} of its runs: {problems[0]}")

    def _send_complete(
        self, tracked: Sequence[_Tracked], progress: Callable[[int], None], should_stop: Callable[[], bool]
    ) -> None:
        """Send runs that have ended, many in one transaction. Runs that do not qualify are left to `_Tracked.push`."""
        whole = [one for one in tracked if one.may_be_complete()]
        for i in range(0, len(whole), _N_AT_ONCE):
            if should_stop():
                return
            progress(len(tracked) - i)
            runs = {one.run: one for one in whole[i : i + _N_AT_ONCE]}
            sent: set[RunFolder] = set()
            attempt(lambda runs=runs, sent=sent: sent.update(self._uploader().push_complete([*runs])))
            for run in sent:
                runs[run].was_sent()

    def _send_all(self, left: Sequence[_Tracked], progress: Callable[[int], None]) -> list[str]:
        """Push each run completely. Wait for other processes that are sending. Return all problems that occurred."""
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
                if tracked.status is not None and tracked.is_complete and not tracked.has_news():
                    continue
                problem = tracked.push(self._uploader, last=True) if tracked.size else None
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

    def _is_ours(self, run: RunFolder) -> bool:
        return self._with_copies or not run.copy_mark.exists()

    def _is_down(self) -> bool:
        """Return whether the store does not answer. If so, other runs are not tried for a while."""
        self._down = attempt(lambda: self._uploader().reach(), known=self._down)
        self._next_try = time.monotonic() + RETRY_EVERY_S if self._down else 0.0
        return self._down is not None

    def _begun(self) -> Iterator[RunFolder]:
        """Yield the runs that have begun and are not settled.

        For a finished trial, at most the folder's modification time is read: a study may have thousands.
        """
        try:
            trials = [entry for entry in os.scandir(self._folder.trials) if entry.path not in self._settled]
        except FileNotFoundError:
            return
        for entry in trials:
            if not entry.is_dir() or self._listed.get(entry.path) == (modified := entry.stat().st_mtime_ns):
                continue
            replicates = [RunFolder(inner.path) for inner in os.scandir(entry) if inner.is_dir()]
            begun = [run for run in (RunFolder(entry.path), *replicates) if run.journal.exists()]
            yield from (run for run in begun if str(run.path) not in self._settled and self._is_ours(run))
            if begun and len(begun) >= len(replicates) and modified < time.time_ns() - _SETTLING_NS:
                self._listed[entry.path] = modified
