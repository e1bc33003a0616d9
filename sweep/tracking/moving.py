"""Move an output folder: everything in it, and the artifact locations in MLflow that name it.

A note in the folder says that it is being moved, and where to. So the same command completes a move that was
interrupted, wherever that happened, and nothing else takes a half-moved folder for a whole one.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from sweep.config.nodes import Tracking
from sweep.tracking import journal
from sweep.tracking.chunks import rename_store
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.tracking.store import Store, own_store, tracking_store
from sweep.utils.errors import ConfigError, one_line
from sweep.utils.files import write_atomic
from sweep.utils.fsync import fsync
from sweep.utils.paths import absolute, is_inside, refuse_links_at

_NOTE = ".moving.json"  # in the folder that is moved
_PART = ".moving"  # the suffix of a copy on another disk that is not complete yet
_OURS = ("runs", "studies", "multirun", "comparisons", "lr_range", "mlflow.db")


class Moved(NamedTuple):
    """What was moved.

    Attributes:
        folder: the output folder, where it is now.
        n_locations: the number of artifact locations in MLflow that were changed.
        storages: by the name of a study, the file of its own that was moved with it, where it is now. Its record names
            the old place, so it has to be given from now on.
    """

    folder: Path
    n_locations: int
    storages: dict[str, Path]


def move_output_dir(before: str | Path, now: str | Path, uri: str | None = None) -> Moved:
    """Move an output folder. If this is interrupted, the same call completes it, and nothing is lost meanwhile.

    Args:
        before: the output folder.
        now: its new path, where nothing may exist.
        uri: a database of MLflow's, other than the one in the folder, that keeps artifacts there; by default
            MLFLOW_TRACKING_URI.

    Raises:
        ConfigError: there is no output folder, the new path is taken, or a run below the folder is being trained.
    """
    source, target = absolute(before), absolute(now)
    if not _is_complete(source, target):
        _check(source, target)
        _note(source, source, target)
        _move(source, target)
    n_locations = sum(_relocate(store, source, target) for store in _stores(target, uri))
    for run in _runs_below(target):
        rename_store(run, str(own_store(source).uri), str(own_store(target).uri))
    _remove_copied(source, target)
    (target / _NOTE).unlink(missing_ok=True)
    return Moved(target, n_locations, _storages(source, target))


def _is_complete(source: Path, target: Path) -> bool:
    """Return whether an interrupted move has all files at their new place, and only has to be completed."""
    return _noted(target) == (str(source), str(target))


def _note(folder: Path, source: Path, target: Path) -> None:
    """Write the note into the folder. Its time says when the folder, or its copy, was complete."""
    note = {"from": str(source), "to": str(target), "time_ns": time.time_ns()}
    write_atomic(folder / _NOTE, json.dumps(note))


def _read_note(folder: Path) -> dict[str, Any]:
    try:
        note = json.loads((folder / _NOTE).read_bytes())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _noted(folder: Path) -> tuple[Any, Any] | None:
    """Return from where to where the folder is being moved; None if it is not."""
    note = _read_note(folder)
    return (note.get("from"), note.get("to")) if note else None


def _check(source: Path, target: Path) -> None:
    """Raise ConfigError if the folder cannot be moved there."""
    if source.is_symlink():
        raise ConfigError("output_dir", f"'{source}' is a link; name the folder itself: '{os.path.realpath(source)}'")
    if not any((source / name).exists() for name in _OURS):
        raise ConfigError("output_dir", f"'{source}' is no folder with outputs of sweep")
    refuse_links_at(source)
    if os.path.lexists(target):
        raise ConfigError("NEW", f"'{target}' exists; name a folder that does not exist yet")
    if is_inside(target.parent, source):
        raise ConfigError("NEW", f"'{target}' is inside '{source}'; name a place outside it")
    own_store(target)  # refuses characters that MLflow misreads
    running = next((run.path for run in _runs_below(source) if run.is_running()), None)
    studies = map(StudyFolder, source.glob("studies/*"))
    running = running or next((study.path for study in studies if study.live_workers()), None)
    if running is not None:
        raise ConfigError("output_dir", f"'{running}' is being trained; stop it, or wait until it ends")


def _runs_below(folder: Path) -> Iterator[RunFolder]:
    """Yield every run and study below an output folder."""
    for name, _, files in os.walk(folder):
        if RunFolder(name).journal.name in files:
            yield RunFolder(name)


def _move(source: Path, target: Path) -> None:
    """Move the folder in one step; to another disk by a copy, which gets its name once it is complete."""
    part = target.with_name(target.name + _PART)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            os.rename(source, target)
            return
        if os.path.lexists(part) and _noted(part) != _noted(source):
            raise ConfigError("NEW", f"'{part}' exists and would be overwritten; remove it, or name another folder")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        shutil.copy2(source / _NOTE, part / _NOTE)
        shutil.copytree(source, part, symlinks=True, dirs_exist_ok=True)
        _sync(part)
        _note(part, source, target)
        if any(_has_changed(path, part / path.relative_to(source)) for path in source.rglob("*")):
            raise ConfigError("output_dir", f"'{source}' has changed while it was copied; move it again")
        os.rename(part, target)
        _sync_folder(target.parent)
    except OSError as error:
        problem = f"cannot move it to '{target}' ({one_line(error)}); nothing is lost: make room, and move it again"
        raise ConfigError("output_dir", problem) from error


def _sync(folder: Path) -> None:
    for name, _, files in os.walk(folder):
        for file in files:
            if not os.path.islink(path := os.path.join(name, file)):
                with open(path, "rb") as opened:
                    fsync(opened.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_copied(source: Path, target: Path) -> None:
    """Remove what was copied to another disk. A file that has changed since, or is new, stays."""
    if not source.is_dir() or _noted(source) != _noted(target):
        with suppress(OSError):  # it is empty if the call before was interrupted right here, else it is a new one
            source.rmdir()
        return
    copied_ns = _read_note(target).get("time_ns", 0)
    for name, folders, files in os.walk(source, topdown=False):
        place = target / os.path.relpath(name, source)
        for file in files:
            old = Path(name, file)
            is_older = old.lstat().st_mtime_ns <= copied_ns
            is_copied = is_older if file in _REWRITTEN else not _has_changed(old, place / file)
            if file != _NOTE and is_copied:
                old.unlink()
        for folder in folders:
            with suppress(OSError):  # something new is in it
                Path(name, folder).rmdir()
    (source / _NOTE).unlink()
    with suppress(OSError):
        source.rmdir()


_REWRITTEN = ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm", RunFolder("").sync_state.name)  # by the move itself


def _has_changed(old: Path, new: Path) -> bool:
    """Return whether a file is not as its copy. Folders, and the note itself, count as unchanged."""
    if old.name == _NOTE or (old.is_dir() and not old.is_symlink()):
        return False
    if not os.path.lexists(new):
        return True
    before, now = old.lstat(), new.lstat()
    return (before.st_size, before.st_mtime_ns) != (now.st_size, now.st_mtime_ns)


def _storages(source: Path, target: Path) -> dict[str, Path]:
    """Return the storages, other than the files of studies, that were moved with the folder."""
    found = {}
    for path in target.glob("studies/*"):
        recorded = (journal.first(RunFolder(path).journal, "start") or {}).get("storage")
        place = Path(str(recorded).removeprefix("sqlite:///"))
        if recorded is not None and place.is_absolute() and place.is_relative_to(source):
            found[path.name] = target / place.relative_to(source)
    return found


def _stores(folder: Path, uri: str | None) -> list[Store]:
    """Return the stores whose artifacts are in the folder: its own, and a database that the user names."""
    named = tracking_store(Tracking(uri=uri), folder)
    stores = [store for store in (own_store(folder), named) if store.artifact_root is not None]
    return [store for store in dict.fromkeys(stores) if not store.is_in_outputs or (folder / "mlflow.db").exists()]


def _relocate(store: Store, source: Path, target: Path) -> int:
    from sweep.tracking.mlflow_moving import relocate

    return relocate(store, source, target)
