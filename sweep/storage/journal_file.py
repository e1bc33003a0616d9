"""The embedded storage: a file in the format of Optuna's JournalFileBackend, so that optuna-dashboard opens it, too."""

import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from sweep.storage.url import KEY, NotAStorage
from sweep.utils.errors import ConfigError, Damaged
from sweep.utils.fsync import fsync

_BEGINNING = b'{"op_code":'  # of every line of a journal
_SEAL_BYTES = 32
# Intermediate values and user attributes of trials survive a crash of the process only, as does the trial's own
# journal, which has the same values. They come with every epoch, and an fsync costs up to 10 ms on a disk.
_NOT_SYNCED = (7, 8)


class JournalFile(BaseJournalBackend):
    """The file behind an Optuna JournalStorage: one JSON object a line; what was appended survives a power cut.

    Each line ends with a seal: the CRC-32 of the whole file up to there, in 32 spaces and tabs, which JSON ignores.
    So a flipped bit, a lost line and one that stands twice are found. Lines of Optuna's own backend have none; the next
    seal covers them, too. A torn last line, left by a crash or a full disk, is not read, and cut off before the next
    is appended. Exclusion
    is by flock, which dies with its process; the lock file of Optuna's own backend is left alone.

    read_only: the file has to be there; it is not made, and may be one that cannot be written to.
    """

    def __init__(self, path: str | Path, read_only: bool = False) -> None:
        self._path = Path(path).absolute()
        self._mark = (0, 0, 0)  # lines read, the offset behind them, and the CRC of all bytes before that
        with self._locked(os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT, fcntl.LOCK_SH):
            if not self._path.is_file():
                raise NotAStorage(KEY, f"'{self._path}' is no file")

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """All of the logs or, when the disk is full, none."""
        lines = [json.dumps(log, separators=(",", ":")).encode() for log in logs]
        with self._locked(os.O_RDWR | os.O_APPEND, fcntl.LOCK_EX) as file:
            size = self._without_torn_line(file)
            data = self._sealed(file, size, lines)
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
        number, offset, crc = self._mark if self._mark[0] <= log_number_from else (0, 0, 0)
        with self._locked(os.O_RDONLY, fcntl.LOCK_SH) as file:
            data = os.pread(file, self._size(file) - offset, offset)
        *lines, torn = data.split(b"\n")
        if offset == 0 and not lines:
            self._check_beginning(torn)
        for line in lines:
            number, offset = number + 1, offset + len(line) + 1
            before, crc = crc, zlib.crc32(line + b"\n", crc)
            if number > log_number_from:
                log = self._parsed(line, number, before)
                self._mark = (number, offset, crc)
                yield log
        self._check_torn(torn, number + 1, crc)

    def _parsed(self, line: bytes, number: int, crc: int) -> dict[str, Any]:
        """The log in a line. crc: of the bytes before it."""
        try:
            log = json.loads(line)
        except (ValueError, RecursionError):
            log = None
        if isinstance(log, dict) and "op_code" in log:
            if line.endswith(b"}") or _is_sealed(line, crc):
                return log
        elif number == 1 and not line.startswith(_BEGINNING):
            raise NotAStorage(KEY, f"'{self._path}' is no journal of Optuna's")
        raise self._damaged(number)

    def _damaged(self, number: int) -> Damaged:
        remedy = "restore the file from a copy; if that line was added to it, delete the line to go on with the others"
        return Damaged(KEY, self._path, "it is not as it was written", remedy, number)

    def _check_torn(self, torn: bytes, number: int, crc: int) -> None:
        """A crash leaves a part of the last line, never all of it with another end."""
        if _is_sealed(torn[:-1], crc):
            raise self._damaged(number)

    def _sealed(self, file: int, size: int, lines: list[bytes]) -> bytes:
        """The lines as they are written behind the first `size` bytes of the file."""
        _, offset, crc = self._mark
        crc = zlib.crc32(os.pread(file, size - offset, offset), crc)
        data = b""
        for line in lines:
            sealed = line + _seal(zlib.crc32(line, crc)) + b"\n"
            data, crc = data + sealed, zlib.crc32(sealed, crc)
        return data

    def _without_torn_line(self, file: int) -> int:
        """The file's size, once it ends with a whole line."""
        size, (number, offset, crc) = self._size(file), self._mark
        if size == offset or os.pread(file, 1, size - 1) == b"\n":
            return size
        tail = os.pread(file, size - offset, offset)
        whole = offset + tail.rfind(b"\n") + 1
        if whole == 0:
            self._check_beginning(tail)
        before = tail[: whole - offset]
        self._check_torn(tail[whole - offset :], number + before.count(b"\n") + 1, zlib.crc32(before, crc))
        os.ftruncate(file, whole)
        return whole

    def _check_beginning(self, torn: bytes) -> None:
        """A file of a single unfinished line is only cut off if it was a journal; a power cut may leave zeros."""
        if not _BEGINNING.startswith(torn.rstrip(b"\0")[: len(_BEGINNING)]):
            raise NotAStorage(KEY, f"'{self._path}' is no journal of Optuna's")

    def _size(self, file: int) -> int:
        size = os.fstat(file).st_size
        if size < self._mark[1]:
            raise ConfigError(KEY, f"'{self._path}' was cut or replaced while in use")
        return size

    def _locked(self, flags: int, kind: int) -> AbstractContextManager[int]:
        return flocked(self._path, flags, kind)


def _seal(crc: int) -> bytes:
    return bytes(b" \t"[crc >> bit & 1] for bit in range(_SEAL_BYTES))


def _is_sealed(line: bytes, crc: int) -> bool:
    """Whether the line has the seal that fits it. crc: of the bytes before it."""
    body, seal = line[:-_SEAL_BYTES], line[-_SEAL_BYTES:]
    return body.endswith(b"}") and seal == _seal(zlib.crc32(body, crc))


@contextmanager
def flocked(path: Path, flags: int, kind: int) -> Iterator[int]:
    """The opened file's descriptor, while locked. Raises ConfigError where it cannot be opened."""
    try:
        file = os.open(path, flags, 0o644)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not flags & os.O_CREAT:  # it was there before
            raise ConfigError("study", f"'{path}' is gone: it was removed while the study used it") from error
        if isinstance(error, FileNotFoundError):
            raise ConfigError(KEY, f"there is no folder '{path.parent}'; make it, or name another file") from error
        raise ConfigError(KEY, f"cannot open '{path}': {error.strerror}") from error
    try:
        fcntl.flock(file, kind)
        yield file
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough if another thread forked meanwhile
        os.close(file)
