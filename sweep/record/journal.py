"""The journal: a trial's append-only record, one JSON object a line, from which everything else is drawn.

Kinds of lines: `start` (who the trial is; again when it is resumed), `metrics` (columns: ascending `steps`, and as many
`values` of each metric), `end` (how it ended). `time` is in milliseconds since 1970.
"""

import bisect
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sweep.durable import fsync

Record = dict[str, Any]
_TAIL_BYTES = 4096


class Curve(NamedTuple):
    """One metric of a trial. steps: (n,) int64, ascending; values: (n,) float64."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def tolist(self) -> tuple[list[int], list[float]]:
        return self.steps.tolist(), self.values.tolist()


class Journal:
    """Appends records; each append survives a crash of this process, and `sync` one of the machine.

    A torn last line, left by a crash, is cut off on opening. Rows that an earlier process already recorded are
    skipped by `metrics`, so that epochs trained again after a crash stand once.
    """

    def __init__(self, path: Path) -> None:
        _cut_torn_line(path)
        self._recorded = _last_steps(path)  # per key
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def event(self, kind: str, **fields: Any) -> None:
        """Appends one record of the given kind."""
        self._append({"kind": kind, "time": time.time_ns() // 1_000_000, **fields})

    def metrics(self, steps: Sequence[int], values: Mapping[str, Sequence[float]], **fields: Any) -> None:
        """Appends the values of each metric at the given steps, ascending. fields: `time`, if it was not now."""
        n_known = bisect.bisect_right(steps, min(self._recorded.get(key, -1) for key in values))
        if n_known < len(steps):
            columns = {key: list(column[n_known:]) for key, column in values.items()}
            self.event("metrics", steps=list(steps[n_known:]), values=columns, **fields)

    def sync(self) -> None:
        fsync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _append(self, record: Record) -> None:
        """All of the record or, when the disk is full, nothing."""
        data = (json.dumps(record) + "\n").encode()
        size = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            os.ftruncate(self._file, size)
            raise


def read(path: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Whole records from byte `offset` on, each with the offset behind it. A torn or damaged line ends the reading."""
    try:
        file = open(path, "rb")  # noqa: SIM115  # closed below; a missing file is an empty journal
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield record, offset


def curves(path: Path) -> dict[str, Curve]:
    """Every metric in the journal, by name."""
    points: dict[str, tuple[list[int], list[float]]] = {}
    for record, _ in read(path):
        if record["kind"] == "metrics":
            for key, column in record["values"].items():
                steps, values = points.setdefault(key, ([], []))
                steps += record["steps"]
                values += column
    return {key: Curve(np.array(steps, np.int64), np.array(values)) for key, (steps, values) in points.items()}


def first(path: Path, kind: str) -> Record | None:
    """The first record of that kind."""
    return next((record for record, _ in read(path) if record["kind"] == kind), None)


def last(path: Path) -> Record | None:
    """The last whole record, without reading those before it; None if there is none, or it is damaged."""
    data = b""
    with open(path, "rb") as file:
        start = file.seek(0, os.SEEK_END)
        while start and data.count(b"\n") < 2:
            block = min(start, _TAIL_BYTES)
            start = file.seek(start - block)
            data = file.read(block) + data
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None


def status(path: Path) -> str | None:
    """How the trial's last attempt ended: FINISHED, FAILED or KILLED; None while it runs, or since it died."""
    last = None
    for record, _ in read(path):
        if record["kind"] in ("start", "end"):
            last = record.get("status")
    return last


def _last_steps(path: Path) -> dict[str, int]:
    return {key: int(curve.steps[-1]) for key, curve in curves(path).items()}


def damaged_line(path: Path) -> int | None:
    """The number, from 1, of the first finished line that cannot be read. A crash leaves none."""
    ends = [end for _, end in read(path)]
    with open(path, "rb") as file:
        file.seek(ends[-1] if ends else 0)
        return len(ends) + 1 if file.readline().endswith(b"\n") else None


def _cut_torn_line(path: Path) -> None:
    if path.exists():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
