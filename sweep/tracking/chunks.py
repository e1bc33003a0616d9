"""Splits a journal into chunks for MLflow, and stores how much of it was sent. Imports no MLflow."""

import hashlib
import json
import sys
import zlib
from collections.abc import Iterator
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any

from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.utils.files import write_atomic

_MAX_VALUES = 1000  # a chunk ends with the record that reaches this many metric values
_MAX_PARAM_LENGTH = 6000  # this and the next are MLflow's limits
_MAX_TAG_LENGTH = 8000
_STATE = ("run_id", "offset", "attempted")  # the fields of an upload state

MODEL = "model"  # among the artifacts of an `end`: a model of MLflow's, made of the run's best.pt and model.yaml
REGISTER_TAG = "model.register"  # the name under which the model is added to the registry

_FOLDERS = {"experiment": ".yaml", "plots": ".png", "artifacts": ""}  # each with the suffix of the files that are sent
_ARTIFACTS = (
    *("config.yaml", "overrides.yaml", "error.txt", "best.pt", "predictions.parquet", "curves.png", "uncommitted.diff"),
    *("optimization_results.yaml", "best.yaml", "report.html", MODEL, *_FOLDERS),
)

Point = tuple[str, float, int, int]  # key, value, time in milliseconds, step


class SyncCursor:
    """How much of a run was sent to one store, as kept in `mlflow.json`.

    Attributes:
        run_id: the MLflow run id; None if it is unknown.
        offset: how many bytes of the journal were sent.
        attempted: whether the store may have the run although `run_id` is None.
    """

    def __init__(self, folder: RunFolder, store: str) -> None:
        self._path, self._store = folder.sync_state, store
        self._stores, is_damaged = _stores(self._path)
        known = self._stores.get(store, {})
        self.run_id: str | None = known.get("run_id")
        self.offset: int = known.get("offset", 0) if self.run_id else 0
        self.attempted: bool = known.get("attempted", is_damaged)

    def save(self, durable: bool = True) -> None:
        state = {"run_id": self.run_id, "offset": self.offset, "attempted": self.attempted}
        self._stores[self._store] = {**state, "check": _check(state)}
        write_atomic(self._path, json.dumps(self._stores), durable)


def _stores(path: Path) -> tuple[dict[str, Any], bool]:
    """Return the valid states by store, and whether some state is damaged.

    Damaged states are left out. A store may then have a run that the file does not mention, so it must be asked.
    """
    try:
        stores = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, False
    except (OSError, ValueError, RecursionError):
        stores = None
    if not isinstance(stores, dict):
        return {}, True
    whole = {store: known for store, known in stores.items() if _is_whole(known)}
    return whole, len(whole) < len(stores)


def _is_whole(state: Any) -> bool:
    """Return whether the state is valid. Early versions wrote no `check`, and the first one no `attempted`."""
    if not isinstance(state, dict) or not {"run_id", "offset"} <= set(state) <= {*_STATE, "check"}:
        return False
    return "check" not in state or state["check"] == _check({key: state.get(key) for key in _STATE})


def _check(state: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(state).encode())


def key_of_store(uri: str) -> str:
    """Return the key of a tracking store in `mlflow.json`. It reveals no password."""
    return hashlib.sha256(uri.encode()).hexdigest()[:16]


def run_id_of(folder: RunFolder, uri: str | None) -> str | None:
    """Return the MLflow run id of a run as `mlflow.json` has it; None if the run was not sent.

    Args:
        folder: the run's folder.
        uri: the tracking store; None for the only one that the run was sent to.
    """
    stores = {store: state["run_id"] for store, state in _stores(folder.sync_state)[0].items() if state["run_id"]}
    if uri is not None and key_of_store(uri) in stores:
        return stores[key_of_store(uri)]
    return next(iter(stores.values())) if len(stores) == 1 else None


def rename_store(folder: RunFolder, before: str, now: str) -> None:
    """Note that a tracking store has another URI now, so that nothing is sent to it again."""
    stores = _stores(folder.sync_state)[0]
    if (state := stores.pop(key_of_store(before), None)) is not None:
        stores.setdefault(key_of_store(now), state)
        write_atomic(folder.sync_state, json.dumps(stores))


def most_sent(folder: RunFolder) -> int:
    """Return the largest number of bytes of the run's journal that were sent to any one store."""
    return max((state["offset"] for state in _stores(folder.sync_state)[0].values()), default=0)


def forget_offsets(folder: RunFolder) -> None:
    """Reset the offsets, so that a journal that was rewritten is sent again from its beginning to the same runs."""
    for store in _stores(folder.sync_state)[0]:
        sent = SyncCursor(folder, store)
        sent.offset, sent.attempted = 0, True
        sent.save()


def note_copied(folder: RunFolder, n_bytes: int = sys.maxsize) -> None:
    """Note how many bytes of a run's journal a copy elsewhere has, for `may_send`. By default, all may be sent."""
    write_atomic(folder.copied, str(n_bytes), durable=False)


def may_send(folder: RunFolder) -> int:
    """Return how many bytes of a run's journal may be sent to MLflow.

    If the run has copies, that is what a copy has: another machine that resumes it records the rest again, and MLflow
    would have both.
    """
    try:
        return int(folder.copied.read_bytes())
    except FileNotFoundError:
        return sys.maxsize
    except ValueError:
        return 0


class Chunk:
    """Consecutive records of a journal.

    Attributes:
        start: the first `start` record; None if there is none.
        end: the last record if it is an `end`, else None. The `end` before a resumed start does not count.
        params: the params of `start`, cut to MLflow's length.
        tags: the tags of all records, cut to MLflow's length.
        points: the metric values. Those that are not finite are left out, because they break MLflow's run page.
    """

    def __init__(self, records: list[journal.Record]) -> None:
        self.start = next((record for record in records if record["kind"] == "start"), None)
        self.end = records[-1] if records[-1]["kind"] == "end" else None
        params = {} if self.start is None else self.start["params"]
        self.params = {key: str(value)[:_MAX_PARAM_LENGTH] for key, value in params.items()}
        tags = chain.from_iterable(record.get("tags", {}).items() for record in records)
        self.tags = {key: str(value)[:_MAX_TAG_LENGTH] for key, value in tags}
        self.points: list[Point] = [*chain.from_iterable(column for record in records for column in _points(record))]


def read_chunks(records: Iterator[tuple[journal.Record, int]], offset: int) -> Iterator[tuple[Chunk, int]]:
    """Yield chunks that fit into about one MLflow batch, each with the byte offset of its end."""
    chunk: list[journal.Record] = []
    n_values = 0
    for record, offset in records:
        chunk.append(record)
        n_values += len(record.get("steps", ())) * len(record.get("values", ()))
        if n_values >= _MAX_VALUES:
            yield Chunk(chunk), offset
            chunk, n_values = [], 0
    if chunk:
        yield Chunk(chunk), offset


def artifact_names(folder: RunFolder, end: journal.Record) -> list[str]:
    """Return the names of files and folders in the run's folder that its `end` record lists as artifacts.

    Records from before version 0.2 list none, and get the usual ones. Only names that sweep itself writes are returned,
    since the record may be somebody else's.
    """
    usual = (folder.config, folder.overrides, folder.best, folder.curves, folder.diff)
    named = end.get("artifacts", [path.name for path in usual])
    return [name for name in named if name in _ARTIFACTS] if isinstance(named, list) else []


def artifact_files(folder: RunFolder, end: journal.Record) -> Iterator[tuple[Path, str | None]]:
    """Yield each existing file that the record lists, with its subfolder of the run's folder; None if it has none.

    Links are not followed: they could lead to any file of the user.
    """
    for name in artifact_names(folder, end):
        path = folder.path / name
        if path.is_symlink():
            continue
        if path.is_file():
            yield path, None
        elif path.is_dir() and name in _FOLDERS:
            for inner in sorted(path.glob(f"*{_FOLDERS[name]}")):
                if inner.is_file() and not inner.is_symlink():
                    yield inner, name


def _points(record: journal.Record) -> Iterator[list[Point]]:
    time, steps = record["time"], record.get("steps", ())
    for key, column in record.get("values", {}).items():
        yield [(key, value, time, step) for step, value in zip(steps, column, strict=True) if isfinite(value)]
