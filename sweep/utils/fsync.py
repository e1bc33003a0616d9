"""What is written reaches the disk, file by file or many files at once, which takes little longer than one; and whether
it is still as it was."""

import os
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

_AT_ONCE = 16
_FIRST_RECORD, _END, _END_BYTES = b"PK\x03\x04", b"PK\x05\x06", 22  # of a zip archive without a comment
_local = threading.local()  # .waiting: descriptors by (device, inode), while `synced_together` lasts


def fsync(file: int) -> None:
    """As `os.fsync`; inside `synced_together`, when that ends."""
    waiting: dict[tuple[int, int], int] | None = getattr(_local, "waiting", None)
    if waiting is None:
        os.fsync(file)
        return
    stat = os.fstat(file)
    if (stat.st_dev, stat.st_ino) not in waiting:
        waiting[stat.st_dev, stat.st_ino] = os.dup(file)


@contextmanager
def synced_together() -> Iterator[None]:
    """Leaves this thread's `fsync`s to the end, and then does them side by side: the file system commits them together.

    Measured: 4.5 ms a file alone, 1.3 ms a file together. Until the end a power cut, unlike a crash of the process, may
    leave any part of what was written. Raises OSError when the disk refuses one of them.
    """
    if getattr(_local, "waiting", None) is not None:  # the outer one sees to it
        yield
        return
    waiting: dict[tuple[int, int], int] = {}
    _local.waiting = waiting
    try:
        yield
    finally:
        _local.waiting = None
        try:
            if waiting:
                _sync_all([*waiting.values()])
        finally:
            for file in waiting.values():
                os.close(file)


def _sync_all(files: list[int]) -> None:
    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(_sync_each, (files[i::_AT_ONCE] for i in range(min(_AT_ONCE, len(files))))))
    except RuntimeError:  # there is no memory for threads
        _sync_each(files)


def _sync_each(files: list[int]) -> None:
    for file in files:
        os.fsync(file)


def check_archive(path: Path) -> None:
    """Raise some exception for a file of torch.save's that is not as it was.

    It has a checksum of every record, which torch.load ignores. Reading them takes 1 ms a MiB. Bytes
    before its first record or behind its last do not belong to it.
    """
    with open(path, "rb") as file:
        first = file.read(len(_FIRST_RECORD))
        file.seek(-_END_BYTES, os.SEEK_END)
        last = file.read(len(_END))
    if (first, last) != (_FIRST_RECORD, _END):
        raise zipfile.BadZipFile("it does not begin and end as an archive")
    with zipfile.ZipFile(path) as archive:
        if (record := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"the checksum of {record} is wrong")
