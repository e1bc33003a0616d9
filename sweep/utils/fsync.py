"""Syncs files to the disk, one at a time or many together, and checks archives for damage."""

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
    """Do `os.fsync` now or, inside `synced_together`, when that ends."""
    waiting: dict[tuple[int, int], int] | None = getattr(_local, "waiting", None)
    if waiting is None:
        os.fsync(file)
        return
    stat = os.fstat(file)
    if (stat.st_dev, stat.st_ino) not in waiting:
        waiting[stat.st_dev, stat.st_ino] = os.dup(file)


@contextmanager
def synced_together() -> Iterator[None]:
    """Defer this thread's calls of `fsync` to the end of the `with` block, and then do them in parallel.

    The file system then commits the files together. Measured: 4.5 ms a file one by one, 1.3 ms a file together. Until
    the end of the block, a power cut may leave any part of what was written; a crash of the process loses nothing.
    Raises OSError if a file cannot be synced.
    """
    if getattr(_local, "waiting", None) is not None:  # the outer block does it
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
    except RuntimeError:  # no memory for threads
        _sync_each(files)


def _sync_each(files: list[int]) -> None:
    for file in files:
        os.fsync(file)


def check_archive(path: Path) -> None:
    """Raise an exception of any type if a file written by torch.save is damaged.

    The file has a checksum for each record, which torch.load ignores. The check takes 1 ms a MiB. Bytes before the
    first record or after the end also count as damage.
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
