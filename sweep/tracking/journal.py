"""The journal: a run's append-only record, with one JSON object a line. Everything else is derived from it.

There are three kinds of lines. `start` identifies the run; another one is appended each time the run is resumed.
`metrics` holds columns: ascending `steps`, and one value of each metric for each step in `values`. `end` states how the
run ended. Each line has its `time` in milliseconds since 1970.

Each line ends with its own number, `line`, and with `crc`, the CRC-32 of all bytes of the line before the key `crc`.
They reveal a flipped bit, a lost line and a duplicated line. Journals of earlier versions have neither, and can
still be read.
"""

import bisect
import json
import os
import time
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from sweep.tracking.fields import Record, odd_field
from sweep.utils.curve import Curve
from sweep.utils.errors import DamagedJournal
from sweep.utils.fsync import fsync
from sweep.utils.private import private

_TAIL_BYTES = 4096
_BEFORE_CRC, _BEHIND_CRC = b', "crc": "', b'"}\n'
_CRC_DIGITS = 8


class Journal:
    """Appends records to a journal.

    An appended record survives a crash of this process. After `sync`, it also survives a crash of the machine. Opening
    the journal removes a torn last line, which a crash may leave, and raises DamagedJournal if another line is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._recorded: dict[str, int] = {}  # the last recorded step, by metric
        self._n_lines = end = 0
        for record, offset in read(path):
            self._n_lines, end = self._n_lines + 1, offset
            if record["kind"] == "metrics" and record["steps"]:
                self._recorded.update(dict.fromkeys(record["values"], int(record["steps"][-1])))
        self._file = private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        if os.fstat(self._file).st_size > end:
            os.ftruncate(self._file, end)

    def event(self, kind: str, **fields: Any) -> None:
        """Append one record of the given kind. Its `time` is now unless `fields` has one."""
        self._append({"kind": kind, "time": time.time_ns() // 1_000_000, **fields})

    def metrics(self, steps: Sequence[int], values: Mapping[str, Sequence[float]], **fields: Any) -> None:
        """Append the values of each metric at the given steps.

        Steps that are already recorded are skipped, so that epochs that are reported or trained again appear once.

        Args:
            steps: the steps, ascending.
            values: one value for each step, by metric.
            fields: `time` in milliseconds since 1970, if the values are not from now.
        """
        n_known = {key: bisect.bisect_right(steps, self._recorded.get(key, -1)) for key in values}
        for n in sorted({*n_known.values()} - {len(steps)}):  # one for all, unless an earlier try recorded only some
            columns = {key: list(column[n:]) for key, column in values.items() if n_known[key] == n}
            self.event("metrics", steps=list(steps[n:]), values=columns, **fields)
            self._recorded.update(dict.fromkeys(columns, steps[-1]))

    def sync(self) -> None:
        """Wait until all records have reached the disk, so that they survive a power cut."""
        fsync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _append(self, record: Record) -> None:
        """Append the record. If the disk is full, leave the file unchanged and raise OSError."""
        body = f'{json.dumps(record)[:-1]}, "line": {self._n_lines + 1}'.encode()
        data = body + _BEFORE_CRC + _crc(body) + _BEHIND_CRC
        size = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            os.ftruncate(self._file, size)
            raise
        self._n_lines += 1


def read(path: Path, offset: int = 0, damage: list[DamagedJournal] | None = None) -> Iterator[tuple[Record, int]]:
    """Yield the records from byte `offset` on, each with the offset of its end. A torn last line is not yielded.

    Args:
        path: the journal. A missing file counts as an empty journal.
        offset: where to begin, in bytes: 0 or the end of a line.
        damage: a list that gets an error for each damaged line. Reading then continues after that line.

    Raises:
        DamagedJournal: a line is damaged, and `damage` is None.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115  # closed below; a missing file is an empty journal
    except FileNotFoundError:
        return
    with file:
        order = _Order()
        if offset and (before := _line_before(file, offset)):
            order.begin_behind(before)
        file.seek(offset)
        for line in file:
            try:
                record = order.checked(line)
            except ValueError as error:
                found = DamagedJournal(path, _n_lines_before(path, offset) + 1, str(error))
                if damage is None:
                    raise found from None
                damage.append(found)
                record = order.out_of_place
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            if record is not None:
                yield record, offset


class _Order:
    """Checks lines in order: each by its checksum, and by its number, which must follow those of the lines before.

    Each damaged line may account for one missing number. If more numbers are missing, lines were lost.
    `out_of_place` is the record of the last line if it is valid but lines before it are missing, else None.
    """

    def __init__(self) -> None:
        self.out_of_place: Record | None = None
        self._next: int | None = 1  # the expected number; None if any is allowed
        self._n_bad = 0  # damaged lines since the last valid one, which may have had numbers or not
        self._is_numbered = False
        self._before = b""

    def begin_behind(self, line: bytes) -> None:
        """Continue after `line`, which lies in the middle of the file."""
        self._next, self._before = None, line
        try:
            number = _parsed(line)[1]
        except ValueError:
            return
        if number is not None:
            self._next, self._is_numbered = number + 1, True

    def checked(self, line: bytes) -> Record | None:
        """Return the record of the next line; None if the line is torn. Raise ValueError if it is damaged."""
        self.out_of_place = None
        if not line.endswith(b"\n"):
            if _is_whole(line[:-1] + b"\n"):
                raise ValueError("its end was changed")
            return None
        try:
            record, number = _parsed(line)
            if number is None and self._is_numbered:
                raise ValueError("it has no checksum, unlike the lines before it")
            if line == self._before or (number is not None and self._next is not None and number < self._next):
                raise ValueError("it appears twice")
        except ValueError:
            self._n_bad += 1
            raise
        expected, n_bad, self._before, self._n_bad = self._next, self._n_bad, line, 0
        self._is_numbered = self._is_numbered or number is not None
        if number is not None:
            self._next = number + 1
        elif expected is not None:
            self._next = expected + 1
        if number is not None and expected is not None and number > expected + n_bad:
            self.out_of_place = record
            raise ValueError("lines before it are missing")
        return record


def _parsed(line: bytes) -> tuple[Record, int | None]:
    """Return the record in a complete line, and its number; None if it has none. Raise ValueError if it is damaged."""
    body, before = line[:-_SUFFIX_BYTES], line[-_SUFFIX_BYTES : -_SUFFIX_BYTES + len(_BEFORE_CRC)]
    is_signed = before == _BEFORE_CRC
    if is_signed and line[-_SUFFIX_BYTES:] != _BEFORE_CRC + _crc(body) + _BEHIND_CRC:
        raise ValueError("its checksum is wrong")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(record, dict):
        raise ValueError("it is not a record")
    number = record.pop("line", None)
    if not is_signed and (number is not None or "crc" in record):
        raise ValueError("its checksum is missing")
    record.pop("crc", None)
    if (odd := odd_field(record)) is not None:
        raise ValueError(f"its {odd!r} is missing or odd")
    return record, number


def _is_whole(line: bytes) -> bool:
    try:
        return _parsed(line)[1] is not None
    except ValueError:
        return False


def _crc(body: bytes) -> bytes:
    return b"%08x" % zlib.crc32(body)


_SUFFIX_BYTES = len(_BEFORE_CRC) + _CRC_DIGITS + len(_BEHIND_CRC)


def _line_before(file: IO[bytes], offset: int) -> bytes:
    """Return the line that ends at byte `offset`, read backwards in blocks. Its content is not checked."""
    start, data = offset, b""
    while start and data[:-1].count(b"\n") < 1:
        block = min(start, _TAIL_BYTES)
        start = file.seek(start - block)
        data = file.read(block) + data
    return data[data[:-1].rfind(b"\n") + 1 :]


def _n_lines_before(path: Path, offset: int) -> int:
    with open(path, "rb") as file:
        return file.read(offset).count(b"\n")


def curves(path: Path) -> dict[str, Curve]:
    """Return the curve of every metric in the journal, by name. Raise as `read` does."""
    points: dict[str, tuple[list[int], list[float]]] = {}
    for record in records(path, "metrics"):
        for key, column in record["values"].items():
            steps, values = points.setdefault(key, ([], []))
            steps += record["steps"]
            values += column
    import numpy as np  # not at the top: a seventh of the time of `--cfg job`

    return {key: Curve(np.array(steps, np.int64), np.array(values)) for key, (steps, values) in points.items()}


def records(path: Path, *kinds: str, damage: list[DamagedJournal] | None = None) -> Iterator[Record]:
    """Yield the records of these kinds, in order. Raise as `read` does."""
    return (record for record, _ in read(path, damage=damage) if record["kind"] in kinds)


def first(path: Path, kind: str) -> Record | None:
    """Return the first record of that kind."""
    return next(records(path, kind), None)


def last_of(path: Path, *kinds: str) -> Record | None:
    """Return the last record of these kinds."""
    return next(iter(deque(records(path, *kinds), maxlen=1)), None)


def last_end(path: Path) -> Record | None:
    """Return the `end` of the run if nothing follows it; None if the run is still running, or died."""
    found = last_of(path, "start", "end")
    return found if found is not None and found["kind"] == "end" else None


def uid(path: Path) -> str | None:
    """Return the uid of the first readable `start`; None if there is none."""
    return next(records(path, "start", damage=[]), {}).get("uid")


def last(path: Path) -> Record | None:
    """Return the last complete record without reading the others; None if there is none, or if it is damaged."""
    with open(path, "rb") as file:
        end = _complete_bytes(file)
        try:
            return _parsed(_line_before(file, end))[0] if end else None
        except ValueError:
            return None


def complete_size(path: Path) -> int:
    """Return the size of the file in bytes, without a torn last line; 0 if there is no file."""
    try:
        with open(path, "rb") as file:
            return _complete_bytes(file)
    except FileNotFoundError:
        return 0


def _complete_bytes(file: IO[bytes]) -> int:
    start = file.seek(0, os.SEEK_END)
    while start:
        block = min(start, _TAIL_BYTES)
        start = file.seek(start - block)
        if (found := file.read(block).rfind(b"\n")) >= 0:
            return start + found + 1
    return 0


def status(path: Path) -> str | None:
    """Return how the run ended: FINISHED, FAILED or KILLED; None if it is still running, or died."""
    return (last_end(path) or {}).get("status")


def check(path: Path) -> None:
    """Raise DamagedJournal if a line is damaged. A torn last line, which a crash may leave, does not count."""
    for _ in read(path):
        pass
