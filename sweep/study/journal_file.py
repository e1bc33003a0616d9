"""The embedded storage: a file in the format of Optuna's JournalFileBackend, so that optuna-dashboard opens it, too."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from sweep.durable import fsync
from sweep.errors import ConfigError
from sweep.study.url import KEY

_BEGINNING = b'{"op_code":'  # of every line of a journal
# Intermediate values and user attributes of trials survive a crash of the process only, as does the trial's own
# journal, which has the same values. They come with every epoch, and an fsync costs up to 10 ms on a disk.
_NOT_SYNCED = (7, 8)


class JournalFile(BaseJournalBackend):
    """The file behind an Optuna JournalStorage: one JSON object a line; what was appended survives a power cut.

    A torn last line, left by a crash or a full disk, is not read, and cut off before the next is appended. Exclusion
    is by flock, which dies with its process; the lock file of Optuna's own backend is left alone.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).absolute()
        self._mark = (0, 0)  # lines read, and the offset behind them
        with self._locked(os.O_RDWR | os.O_CREAT, fcntl.LOCK_SH):
            if not self._path.is_file():
                raise ConfigError(KEY, f"'{self._path}' is no file")

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """All of the logs or, when the disk is full, none."""
        data = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        with self._locked(os.O_RDWR | os.O_APPEND, fcntl.LOCK_EX) as file:
            size = self._without_torn_line(file)
            try:
                while data:
                    data = data[os.write(file, data) :]
            except OSError:
                os.ftruncate(file, size)
                raise
            fcntl.flock(file, fcntl.LOCK_UN)  # no need to wait for the disk in turn: fsync covers all lines so far
            if any(log["op_code"] not in _NOT_SYNCED for log in logs):
                fsync(file)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Raises ConfigError where a finished line cannot be read."""
        number, offset = self._mark if self._mark[0] <= log_number_from else (0, 0)
        with self._locked(os.O_RDONLY, fcntl.LOCK_SH) as file:
            data = os.pread(file, self._size(file) - offset, offset)
        *lines, torn = data.split(b"\n")
        if offset == 0 and not lines:
            self._check_beginning(torn)
        for line in lines:
            number, offset = number + 1, offset + len(line) + 1
            if number > log_number_from:
                log = self._parsed(line, number)
                self._mark = (number, offset)
                yield log

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            log = json.loads(line)
        except ValueError:
            log = None
        if isinstance(log, dict) and "op_code" in log:
            return log
        if number == 1:
            raise ConfigError(KEY, f"'{self._path}' is no journal of Optuna's; name another file")
        remedy = "restore the file from a copy, or delete that line to go on with the others"
        raise ConfigError(KEY, f"line {number} of '{self._path}' is damaged; {remedy}")

    def _without_torn_line(self, file: int) -> int:
        """The file's size, once it ends with a whole line."""
        size, (_, offset) = self._size(file), self._mark
        if size == offset or os.pread(file, 1, size - 1) == b"\n":
            return size
        tail = os.pread(file, size - offset, offset)
        whole = offset + tail.rfind(b"\n") + 1
        if whole == 0:
            self._check_beginning(tail)
        os.ftruncate(file, whole)
        return whole

    def _check_beginning(self, torn: bytes) -> None:
        """A file of a single unfinished line is only cut off if it was a journal; a power cut may leave zeros."""
        if not _BEGINNING.startswith(torn.rstrip(b"\0")[: len(_BEGINNING)]):
            raise ConfigError(KEY, f"'{self._path}' is no journal of Optuna's; name another file")

    def _size(self, file: int) -> int:
        size = os.fstat(file).st_size
        if size < self._mark[1]:
            raise ConfigError(KEY, f"'{self._path}' was cut or replaced while in use")
        return size

    def _locked(self, flags: int, kind: int) -> AbstractContextManager[int]:
        return flocked(self._path, flags, kind)


@contextmanager
def flocked(path: Path, flags: int, kind: int) -> Iterator[int]:
    """The opened file's descriptor, while locked. Raises ConfigError where it cannot be opened."""
    try:
        if flags & os.O_CREAT:
            with suppress(FileExistsError):  # by a file; that is told below
                path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, flags, 0o644)
    except OSError as error:
        raise ConfigError(KEY, f"cannot open '{path}': {error.strerror}") from error
    try:
        fcntl.flock(file, kind)
        yield file
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough if another thread forked meanwhile
        os.close(file)
