"""The embedded storage: a file in the format of Optuna's JournalFileBackend, which optuna-dashboard can open too."""

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

_BEGINNING = b'{"op_code":'  # every line of a journal begins so
_SEAL_BYTES = 32
# Optuna's codes for intermediate values and user attributes of trials. These survive a crash of the process but not of
# the machine, like the trial's own journal, which holds the same values. They come with every epoch, and an fsync takes
# up to 10 ms on a disk.
_NOT_SYNCED = (7, 8)


class JournalFile(BaseJournalBackend):
    """The file behind an Optuna JournalStorage, with one JSON object a line. Appended lines survive a power cut.

    Each line ends with a seal: the CRC-32 of the whole file up to there, as 32 spaces and tabs, which JSON ignores. It
    reveals a flipped bit, a lost line and a duplicated line. Lines from Optuna's own backend have no seal, but the next
    seal covers them too.

    A torn last line, left by a crash or a full disk, is not read. It is cut off before the next line is appended.
    Processes exclude each other by flock, which the kernel releases when a process dies. The lock file of Optuna's own
    backend is not used.
    """

    def __init__(self, path: str | Path, read_only: bool = False) -> None:
        """Open the file, or create it unless `read_only` is True.

        With `read_only`, the file must exist and need not be writable. Raises ConfigError if it cannot be opened, and
        NotAStorage if it is not a regular file.
        """
        self._path = Path(path).absolute()
        self._mark = (0, 0, 0)  # number of lines read, their end in the file, CRC of all bytes up to there
        with self._locked(os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT, fcntl.LOCK_SH):
            if not self._path.is_file():
                raise NotAStorage(KEY, f"'{self._path}' is not a file")

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append all logs, or none if the disk is full.

        Returns once they have reached the disk, except for intermediate values and user attributes.

        Raises:
            OSError: the disk is full.
            Damaged: the last line of the file was changed.
            ConfigError: the file was removed, cut or replaced.
        """
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
            fcntl.flock(file, fcntl.LOCK_UN)  # no need to hold the lock meanwhile: fsync covers all lines so far
            if any(log["op_code"] not in _NOT_SYNCED for log in logs):
                fsync(file)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the logs from index `log_number_from` on, counted from 0.

        Raises ConfigError if a complete line cannot be read; it is Damaged if the line was changed.
        """
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
        """Return the log in a line. `crc` is that of all bytes before the line."""
        try:
            log = json.loads(line)
        except (ValueError, RecursionError):
            log = None
        if isinstance(log, dict) and "op_code" in log:
            if line.endswith(b"}") or _is_sealed(line, crc):
                return log
        elif number == 1 and not line.startswith(_BEGINNING):
            raise NotAStorage(KEY, f"'{self._path}' is not an Optuna journal")
        raise self._damaged(number)

    def _damaged(self, number: int) -> Damaged:
        remedy = "restore the file from a copy; if that line was added to it, delete the line to keep the others"
        return Damaged(KEY, self._path, "it is not as it was written", remedy, number)

    def _check_torn(self, torn: bytes, number: int, crc: int) -> None:
        """Raise Damaged if only the end of the torn last line was changed. A crash would leave a part of the line."""
        if _is_sealed(torn[:-1], crc):
            raise self._damaged(number)

    def _sealed(self, file: int, size: int, lines: list[bytes]) -> bytes:
        """Return the lines with their seals, to be written after the first `size` bytes of the file."""
        _, offset, crc = self._mark
        crc = zlib.crc32(os.pread(file, size - offset, offset), crc)
        data = b""
        for line in lines:
            sealed = line + _seal(zlib.crc32(line, crc)) + b"\n"
            data, crc = data + sealed, zlib.crc32(sealed, crc)
        return data

    def _without_torn_line(self, file: int) -> int:
        """Cut off a torn last line, and return the size of the file in bytes."""
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
        """Raise NotAStorage unless a file of one torn line was a journal. A power cut may leave zeros at its end."""
        if not _BEGINNING.startswith(torn.rstrip(b"\0")[: len(_BEGINNING)]):
            raise NotAStorage(KEY, f"'{self._path}' is not an Optuna journal")

    def _size(self, file: int) -> int:
        size = os.fstat(file).st_size
        if size < self._mark[1]:
            raise ConfigError(KEY, f"'{self._path}' was cut or replaced while in use")
        return size

    def _locked(self, flags: int, kind: int) -> AbstractContextManager[int]:
        return flocked(self._path, flags, kind)


def _seal(crc: int) -> bytes:
    """Return a CRC as 32 characters, one per bit from the lowest on: a space for 0, a tab for 1."""
    return bytes(b" \t"[crc >> bit & 1] for bit in range(_SEAL_BYTES))


def _is_sealed(line: bytes, crc: int) -> bool:
    """Return whether the line ends with its correct seal. `crc` is that of all bytes before the line."""
    body, seal = line[:-_SEAL_BYTES], line[-_SEAL_BYTES:]
    return body.endswith(b"}") and seal == _seal(zlib.crc32(body, crc))


@contextmanager
def flocked(path: Path, flags: int, kind: int) -> Iterator[int]:
    """Hold an flock of the given `kind` on a file, and yield its descriptor.

    Raises ConfigError if the file cannot be opened.
    """
    try:
        file = os.open(path, flags, 0o644)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not flags & os.O_CREAT:  # it existed before
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
