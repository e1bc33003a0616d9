"""Copies of the folders of runs at a place that all machines reach (`hydra.sweeper.artifacts`).

A run whose machine is lost goes on elsewhere from its copy, and a command has the files of runs that other machines
trained. The place is a folder, or a URL of fsspec's, such as s3://bucket/folder.
"""

import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from sweep.tracking import journal
from sweep.tracking.chunks import forget_offsets, note_copied
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.utils.errors import BeingTrained, ConfigError, one_line
from sweep.utils.fsync import fsync
from sweep.utils.passwords import is_hidden, without_password
from sweep.utils.paths import absolute

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

log = logging.getLogger("sweep")

KEY = "hydra.sweeper.artifacts"
_MARK = "study"  # a file beside the copies of a study's runs
_DRAFT = ".tmp"  # the suffix of a file that is being written
_PAUSES_S = (1.0, 5.0, 15.0)  # before a copy is tried again at the end of a run
_PATIENCE_S, _LONGEST_PAUSE_S = 180.0, 10.0  # until a run that may have a copy is trained without it

_State = tuple[int, int]  # of a file that was copied: its modification time and its size


def absolute_place(url: str) -> str:
    """Return a place for copies so that it is the same one in any directory."""
    return url if "://" in url or "::" in url else str(absolute(url))


class RunCopies:
    """The copies of the runs of one study.

    The copy of a run is never ahead of itself: its files come first, then its journal, then its checkpoint. So a
    machine that dies in between leaves a copy to resume from.
    """

    def __init__(self, url: str, study: str, uid: str) -> None:
        """Name the place. Nothing is read or written.

        Args:
            url: a folder, or a URL of fsspec's.
            study: the name of the study.
            uid: the id of the study's record, so that another study of that name has other copies.
        """
        self._url, self._study = url, f"{study}-{uid[:8]}"
        self._sent: dict[str, _State] = {}  # by the path of the copy

    @property
    def place(self) -> str:
        """Where the copies are, without a password."""
        return f"{without_password(self._url).rstrip('/')}/{self._study}"

    @property
    def _mark(self) -> bytes:
        return f"{self._study}\n".encode()

    def check(self) -> None:
        """Make the place, without anything of the study. Raise ConfigError if that is impossible."""
        if is_hidden(self._url):
            raise ConfigError(KEY, f"'{self._url}' lacks its password; write it in place of ***")
        with self._one_line_errors():
            fs, root = self._root()
            fs.makedirs(root.rpartition("/")[0] or "/", exist_ok=True)

    def begin(self) -> None:
        """Mark the place as that of the study's copies. Raise ConfigError if nothing can be written there."""
        with self._one_line_errors():
            fs, root = self._root()
            fs.makedirs(root, exist_ok=True)
            _write(fs, f"{root}/{_MARK}", BytesIO(self._mark))

    def check_begun(self) -> None:
        """Raise ConfigError if this machine has another place by that name than the one that `begin` marked.

        A place that does not answer now may answer later.
        """
        try:
            fs, root = self._root()
            is_begun = fs.exists(f"{root}/{_MARK}")
        except ImportError as error:  # it needs a package
            raise ConfigError(KEY, f"{one_line(error, 160)}; it is missing on host '{socket.gethostname()}'") from error
        except Exception:
            return
        if not is_begun:
            problem = f"host '{socket.gethostname()}' does not find the study's copies in {self.place}"
            raise ConfigError(KEY, f"{problem}; name a folder or a URL that all machines reach")

    def remove(self) -> bool:
        """Remove the copies of all runs of the study. Return False if the place has none of this study.

        Raises ConfigError if they cannot be removed. The mark goes last, so that the call can be repeated.
        """
        with self._one_line_errors():
            fs, root = self._root()
            try:
                mark: Any = fs.cat_file(f"{root}/{_MARK}")
            except FileNotFoundError:
                return False
            if mark != self._mark:
                return False
            for path in _names_in(fs, root):
                if path.as_posix() != _MARK:
                    fs.rm_file(f"{root}/{path.as_posix()}")
            fs.rm(root, recursive=True)
        return True

    def put(self, run: RunFolder, name: str) -> None:
        """Copy what has changed in a run's folder since the last call. The run may be training.

        Args:
            run: the run's folder.
            name: the name of its copy, as `copy_name` returns it.

        Raises:
            Exception: the place cannot be reached.
        """
        fs, root = self._root()
        with ExitStack() as opened:
            checkpoint = opened.enter_context(open(run.checkpoint, "rb")) if run.checkpoint.exists() else None
            record = _complete(run.journal.read_bytes())  # after the checkpoint is opened: it lacks no epoch of it
            for path in _others(run):
                with open(path, "rb") as file:
                    self._put(fs, f"{root}/{name}/{path.relative_to(run.path).as_posix()}", file)
            _write(fs, f"{root}/{name}/{run.journal.name}", BytesIO(record))
            if checkpoint is not None:
                self._put(fs, f"{root}/{name}/{run.checkpoint.name}", checkpoint)
        note_copied(run, len(record))

    def fetch(self, run: RunFolder, name: str) -> bool:
        """Bring the copy of a run into its folder, if it got further than what is there.

        Args:
            run: the run's folder. The files of the copy replace those of the same run. A folder that has another run
                must be moved away before (`uid`).
            name: the name of the copy.

        Returns:
            True if the folder has the copy now.

        Raises:
            Exception: the place cannot be reached, or the folder cannot be written.
        """
        fs, root = self._root()
        base = f"{root}/{name}"
        record = self._fetched_journal(fs, base, run)
        if record is None:
            return False
        try:
            if not _is_further(record, run.journal):
                return False
            had_some = run.journal.exists()
            fs.invalidate_cache()
            for path in _names_in(fs, base):
                if not _is_machines(path) and str(path) not in (run.journal.name, run.checkpoint.name):
                    _read(fs, f"{base}/{path}", run.path / path)
            n_bytes = record.stat().st_size
            os.replace(record, run.journal)
            note_copied(run, n_bytes)  # not before: of the journal that was here, no more may be sent
            if had_some:
                forget_offsets(run)  # they are of the journal before
            if fs.exists(f"{base}/{run.checkpoint.name}"):
                _read(fs, f"{base}/{run.checkpoint.name}", run.checkpoint)
        finally:
            record.unlink(missing_ok=True)
        return True

    def uid(self, run: RunFolder, name: str) -> str | None:
        """Return the uid of the run that a copy is of; None if there is no copy. `run`: gets a file for a moment."""
        fs, root = self._root()
        record = self._fetched_journal(fs, f"{root}/{name}", run)
        if record is None:
            return None
        try:
            return journal.uid(record)
        finally:
            record.unlink(missing_ok=True)

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any kind: each file system has its own
            problem = f"cannot keep copies in '{without_password(self._url)}' ({one_line(error, 160)})"
            raise ConfigError(
                KEY, f"{problem}; name a folder, or a URL of fsspec's such as s3://bucket/folder"
            ) from error

    def _root(self) -> "tuple[AbstractFileSystem, str]":
        from fsspec.core import url_to_fs

        fs, root = url_to_fs(self._url)
        return fs, f"{root.rstrip('/')}/{self._study}"

    def _put(self, fs: "AbstractFileSystem", target: str, file: IO[bytes]) -> None:
        stat = os.fstat(file.fileno())
        state = (stat.st_mtime_ns, stat.st_size)
        if self._sent.get(target) != state:
            _write(fs, target, file)
            self._sent[target] = state

    def _fetched_journal(self, fs: "AbstractFileSystem", base: str, run: RunFolder) -> Path | None:
        """Return a file beside the run's journal with that of the copy; None if there is no copy."""
        try:
            content: Any = fs.cat_file(f"{base}/{run.journal.name}")
        except FileNotFoundError:
            return None
        run.create()
        fetched = run.journal.with_name(f"{run.journal.name}.tmp")
        fetched.write_bytes(content)
        return fetched


def copy_name(number: int, n_failed: int, replicate: int | None) -> str:
    """Return the name of the copy of a run, which each attempt at a trial has for itself.

    Args:
        number: the trial's number.
        n_failed: how many attempts at it have failed.
        replicate: the run among those of its trial; None if it has only one.
    """
    attempt = f"{number}.attempt-{n_failed}" if n_failed else str(number)
    return attempt if replicate is None else f"{attempt}/seed-{replicate}"


class Copying:
    """Makes the copies of the runs that one worker trains, in a thread, so that no trial waits for them."""

    def __init__(self, copies: RunCopies) -> None:
        self._copies = copies
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="copies")
        self._last: dict[str, Future[None]] = {}
        self._has_warned = self._is_away = False

    def begin(self, run: RunFolder) -> None:
        """Have MLflow get no more of a run than its copy has."""
        if not run.copied.exists() and not run.journal.exists():
            run.create()
            note_copied(run, 0)

    def keep(self, run: RunFolder, name: str) -> None:
        """Copy a run that trains, and do not wait for it. A copy that is being made may lack the new checkpoint."""
        last = self._last.get(name)
        if last is None or last.running() or last.done():  # otherwise one is due that has not begun
            self._last[name] = self._pool.submit(self._try, run, name)

    def finish(self, run: RunFolder, name: str) -> None:
        """Copy a run whose record has ended, and wait for it. If that is impossible, warn.

        Then MLflow gets all of it, unless the run was interrupted: another machine may resume it.
        """
        if (last := self._last.pop(name, None)) is not None:
            last.result()
        for pause_s in (*(() if self._is_away else _PAUSES_S), None):  # no pack waits so long for each of its runs
            try:
                self._copies.put(run, name)
                self._is_away = False
                return
            except Exception as error:  # of any kind: each file system has its own
                if pause_s is None:
                    place = self._copies.place
                    log.warning("warning: '%s' has no copy in %s (%s)", run.path, place, one_line(error, 160))
                    self._is_away = True
                    if not _was_interrupted(run):
                        with suppress(OSError):
                            note_copied(run)
                    return
            time.sleep(pause_s)

    def restore(
        self,
        study: StudyFolder,
        number: int,
        n_failed: int,
        replicates: list[int | None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Bring the copies of a trial that another machine may have trained, unless what is here got further.

        If another attempt at it began here meanwhile, its folder is set aside.

        Args:
            study: the study's folder.
            number: the trial's number.
            n_failed: how many attempts at it have failed.
            replicates: its runs.
            should_stop: returns True to give up while the place does not answer.

        Returns:
            False if it gave up because of `should_stop`.

        Raises:
            BeingTrained: another process of this machine still trains the trial.
        """
        began, pause_s = time.monotonic(), 0.5
        while True:
            try:
                restore(self._copies, study, number, n_failed, replicates)
                return True
            except BeingTrained:
                raise
            except Exception as error:
                if should_stop():
                    return False
                if time.monotonic() - began > _PATIENCE_S:
                    log.warning("warning: trial %d begins anew: its copy cannot be read (%s)", number, one_line(error))
                    return True
                log.warning("the copies in %s cannot be read (%s)", self._copies.place, one_line(error, 120))
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def close(self) -> None:
        """Wait for the copies that are being made."""
        self._pool.shutdown()

    def _try(self, run: RunFolder, name: str) -> None:
        try:
            self._copies.put(run, name)
        except Exception as error:  # the next checkpoint is copied, or the end of the run
            if not self._has_warned:
                log.warning("warning: no copy in %s yet (%s)", self._copies.place, one_line(error, 160))
            self._has_warned = True


def restore(
    copies: RunCopies, study: StudyFolder, number: int, n_failed: int, replicates: list[int | None]
) -> list[RunFolder]:
    """Bring the copies of a trial's runs. See `Copying.restore`. Return the runs that were brought.

    Raises:
        BeingTrained: another process of this machine still trains the trial.
        Exception: the place cannot be reached, or the folder cannot be written.
    """
    names = {replicate: copy_name(number, n_failed, replicate) for replicate in replicates}
    runs = {replicate: study.trial(number, replicate) for replicate in replicates}
    if any(run.is_running() for run in runs.values()):
        raise BeingTrained("resume", f"'{study.trial(number).path}' is being trained by another process")
    others = (r for r, run in runs.items() if run.journal.exists())
    if any(copies.uid(runs[r], names[r]) not in (None, journal.uid(runs[r].journal)) for r in others):
        study.set_lost_aside(number)
    return [runs[r] for r in replicates if copies.fetch(runs[r], names[r])]


def _was_interrupted(run: RunFolder) -> bool:
    return (journal.last(run.journal) or {}).get("status") == "KILLED"


def _others(run: RunFolder) -> Iterator[Path]:
    """Yield the files of a run but its journal, its checkpoint and those that are this machine's own."""
    for path in sorted(run.path.rglob("*")):
        inside = path.relative_to(run.path)
        if path in (run.journal, run.checkpoint, run.sync_state) or _is_machines(inside):
            continue
        if path.is_file() and not path.is_symlink():
            yield path


def _is_machines(inside: PurePath) -> bool:
    """Return whether a file, by its path in a run's folder, is of one machine alone: a lock, a note or a draft."""
    return inside.name.endswith(_DRAFT) or (len(inside.parts) == 1 and inside.name.startswith("."))


def _complete(record: bytes) -> bytes:
    """Return the content of a journal without a torn last line."""
    return record[: record.rfind(b"\n") + 1]


def _is_further(record: Path, own: Path) -> bool:
    """Return whether a journal was continued more often than another one of the same run, or has more records."""

    def reached(path: Path) -> tuple[int, int]:
        damage: list[Any] = []
        return sum(1 for _ in journal.records(path, "start", damage=damage)), journal.complete_size(path)

    return reached(record) > reached(own) if own.exists() else reached(record)[0] > 0


def _names_in(fs: "AbstractFileSystem", base: str) -> list[PurePosixPath]:
    """Return the files of a copy, relative to it."""
    found = (PurePosixPath(str(path)) for path in fs.find(base))
    inside = [path.relative_to(base.lstrip("/") if not str(path).startswith("/") else base) for path in found]
    return [path for path in inside if ".." not in path.parts]


def _write(fs: "AbstractFileSystem", target: str, source: IO[bytes]) -> None:
    """Replace a file, which a reader sees before or after: object stores do so, and a folder gets a new file."""
    from fsspec.implementations.local import LocalFileSystem

    if not isinstance(fs, LocalFileSystem):
        opened: Any = fs.open(target, "wb")
        try:
            shutil.copyfileobj(source, opened)
        except BaseException:
            _abandon(opened)
            raise
        opened.close()
        return
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, lambda file: shutil.copyfileobj(source, file))


def _abandon(opened: Any) -> None:
    """Give up an object that is being written. To close it would put what was written of it in place of the old one."""
    with suppress(Exception):
        opened.discard()
    with suppress(AttributeError):
        opened.closed = True


def _read(fs: "AbstractFileSystem", source: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opened: Any = fs.open(source, "rb")
    with opened as file:
        _replace(path, lambda own: shutil.copyfileobj(file, own))


def _replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{_DRAFT}")  # another machine may write the same file
    try:
        with open(draft, "wb") as file:
            write(file)
            file.flush()
            fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
