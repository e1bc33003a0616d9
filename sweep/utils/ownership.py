"""Keeps track of the files that this process created. Only these may be removed or overwritten."""

import functools
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sweep.utils.errors import ConfigError

_made: set[str] = set()  # directories, by absolute path
_logs: set[str] = set()  # log files that this process created, by absolute path
_hydras: list[tuple[Path, set[str]]] = []  # files that Hydra wrote, each with the names beside it before


@functools.cache
def note_directories() -> None:
    """Record from now on which directories this process creates, in any code.

    Hydra creates a job's folder before any code of the job runs, so only an audit hook can see whether it existed.
    """

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.mkdir" and arguments[2] == -1:  # not relative to a descriptor
            with suppress(OSError, TypeError):
                path = os.path.abspath(os.fsdecode(arguments[0]))
                if not os.path.lexists(path):
                    _made.add(path)

    sys.addaudithook(hook)


def remove_made(folder: Path) -> None:
    """Remove the folder and its parents, as long as this process created them and they are empty."""
    folder = Path(os.path.abspath(folder))
    for path in (folder, *folder.parents):
        if str(path) not in _made:
            return
        try:
            path.rmdir()
        except FileNotFoundError:
            pass
        except OSError:  # not empty
            return
        _made.discard(str(path))


def note_hydras_file(path: Path) -> None:
    """Record that Hydra is about to write the new file `path`."""
    _hydras.append((path, set(os.listdir(path.parent))))


def is_hydras_file(path: Path) -> bool:
    """Return whether Hydra wrote the file in this process."""
    return any(path == noted for noted, _ in _hydras)


def remove_hydras_files(below: Path | None = None) -> None:
    """Remove the files that Hydra wrote in this process, unless other files were added beside them since.

    With `below`, remove only files below that folder.
    """
    for noted in reversed(_hydras.copy()):
        path, before = noted
        if below is not None and below not in path.parents:
            continue
        with suppress(OSError):
            if set(os.listdir(path.parent)) == before | {path.name}:
                path.unlink()
                _hydras.remove(noted)
                remove_made(path.parent)


def note_log(path: Path) -> None:
    """Record that the log file `path` is about to be opened, which creates it if it is missing."""
    if not os.path.lexists(path):
        _logs.add(os.path.abspath(path))


def is_new_log(path: Path) -> bool:
    """Return whether this process created the log file."""
    return str(path) in _logs


def remove_empty_logs() -> None:
    """Close and remove the log files that this process created, if they are empty."""
    for path in map(Path, sorted(_logs)):
        with suppress(OSError):
            if path.stat().st_size > 0 or not path.is_file():
                continue
            for handler in logging.getLogger().handlers.copy():
                if isinstance(handler, logging.FileHandler) and handler.baseFilename == str(path):
                    logging.getLogger().removeHandler(handler)  # else Hydra writes a refused job's traceback
                    handler.close()
            path.unlink()
            remove_made(path.parent)


def refuse_existing(key: str, folder: Path, files: Sequence[Path]) -> None:
    """Raise ConfigError, naming `key`, if one of the files that will be written exists already.

    A directory in `files` may exist if it is empty.
    """
    there = [file for file in files if _is_taken(file) and not is_new_log(file)]
    there += [tmp for file in files if os.path.lexists(tmp := file.with_name(file.name + ".tmp"))]
    there = [os.path.relpath(file, folder) for file in there]
    if there:
        names = ", ".join(there[:4]) + (" ..." if there[4:] else "")
        raise ConfigError(key, f"'{folder}' has files that would be overwritten ({names}); choose another folder")


def _is_taken(path: Path) -> bool:
    return os.path.lexists(path) and not (path.is_dir() and not path.is_symlink() and not any(path.iterdir()))
