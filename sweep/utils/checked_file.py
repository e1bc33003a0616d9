"""Text files whose first line has a digest of the rest, so that damage is detected when they are read.

A file of an earlier version has no such line and is read without a check. A damaged first line must not make a file
look like an old one, so a file counts as having the line if more than half of its fixed text is intact.
"""

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from sweep.utils.errors import Damaged, one_line
from sweep.utils.files import from_yaml, write_atomic
from sweep.utils.fsync import check_archive

_MARK = b"# Written by sweep, which reads it again: do not edit. SHA-256 of the rest: "
_DIGEST_BYTES = 64 + 1  # in hexadecimal, with the end of the line


OF_AN_OPTION = "# @package _global_\n"  # Hydra only reads it on the first line


def write_checked(path: Path, text: str, durable: bool = True, first: str = "") -> None:
    """Replace `path` as `write_atomic` does, with the line `first` and the digest of `text` in front of `text`."""
    write_atomic(path, f"{first}{_head(text.encode()).decode()}{text}", durable)


def is_checked(path: Path) -> bool:
    """Return whether the file begins like one of `write_checked`, damaged or not."""
    return path.is_file() and path.read_bytes().startswith(_MARK)


def remove_checked(path: Path, first: str = "") -> None:
    """Remove the file, and its folder if that is then empty. A file that was changed is kept."""
    if path.is_file() and _is_whole(path.read_bytes(), first):
        path.unlink()
        with suppress(OSError):  # something else is in it
            path.parent.rmdir()


def read_checked(path: Path, key: str, remedy: str, first: str = "") -> str:
    """Return the text of a file that `write_checked` wrote, or of an earlier version's file.

    Args:
        path: the file.
        key: the config key that the error names.
        remedy: what the error suggests to do.
        first: the line before the digest, as in `write_checked`.

    Raises:
        Damaged: the file is empty or was changed.
        OSError: the file cannot be read.
    """
    data, mark = path.read_bytes(), first.encode() + _MARK
    is_whole = _is_whole(data, first)
    same = sum(a == b for a, b in zip(data, mark, strict=False))
    if not data.strip() or (same > min(len(data), len(mark)) // 2 and not is_whole):
        raise Damaged(key, path, "it is empty" if not data.strip() else "it is not as it was written", remedy)
    try:
        return (data[len(mark) + _DIGEST_BYTES :] if is_whole else data).decode()
    except UnicodeDecodeError as error:
        raise Damaged(key, path, f"byte {error.start} is not UTF-8", remedy) from error


def load_checked(path: Path, key: str, remedy: str, kind: type = dict) -> Any:
    """Return the plain content of a YAML file. Raise as `read_checked` does, and Damaged if it is not a `kind`."""
    text = read_checked(path, key, remedy)
    try:
        found = from_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Damaged(key, path, "it is not YAML", remedy) from error
    if not isinstance(found, kind):
        raise Damaged(key, path, f"it is not a {kind.__name__}", remedy)
    return found


def damage_of(path: Path) -> Damaged | None:
    """Return an error if a file of a run or a study is damaged, else None. Files without a checksum are not checked."""
    key, remedy = "output_dir", "put back a copy of it"
    try:
        if path.suffix == ".yaml":
            read_checked(path, key, remedy, OF_AN_OPTION if path.parent.name == "experiment" else "")
        elif path.suffix == ".pt":
            check_archive(path)
    except Damaged as damage:
        return damage
    except Exception as error:  # zipfile raises all kinds of errors for damaged files
        return Damaged(key, path, one_line(error, 120), remedy)
    return None


def _is_whole(data: bytes, first: str) -> bool:
    n_head = len(first.encode()) + len(_MARK) + _DIGEST_BYTES
    return data[:n_head] == first.encode() + _head(data[n_head:])


def _head(body: bytes) -> bytes:
    return _MARK + hashlib.sha256(body).hexdigest().encode() + b"\n"
