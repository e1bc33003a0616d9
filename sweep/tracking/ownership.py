"""What is the user's, and what this process made: only the latter may be removed, and nothing else overwritten."""

import functools
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sweep.tracking.folders import Busy, RunFolder
from sweep.tracking.journal import first, status
from sweep.tracking.provenance import resume_command
from sweep.utils.errors import ConfigError

_made: set[str] = set()  # directories, by absolute path


@functools.cache
def note_directories() -> None:
    """From now on, note which directories this process makes, whatever code makes them.

    Hydra makes a job's folder before any code of the job runs, so only an audit hook can see whether it was there.
    """

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.mkdir" and arguments[2] == -1:  # not relative to a descriptor
            with suppress(OSError, TypeError):
                path = os.path.abspath(os.fsdecode(arguments[0]))
                if not os.path.lexists(path):
                    _made.add(path)

    sys.addaudithook(hook)


def remove_made(folder: Path) -> None:
    """Remove the folder if this process made it and it is empty."""
    if str(folder) in _made:
        with suppress(OSError):
            folder.rmdir()
            _made.discard(str(folder))


class JobFolder:
    """The folder that Hydra gave to a job, looked at before the job wrote anything into it."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._before = set(os.listdir(path)) if self._path.is_dir() else set()

    def leave_unused(self) -> None:
        """Close the job's log, and remove what this process wrote for a job that never began."""
        logs = [Path(handler.baseFilename) for handler in self._handlers()]
        for handler in self._handlers():
            logging.getLogger().removeHandler(handler)
            handler.close()
        run = RunFolder(self._path)
        if run.path.is_dir() and first(run.journal, "start") is None:
            with suppress(Busy, OSError), run.lock():  # else the files are another process's
                for file in (*logs, run.lock_file):
                    if file.name not in self._before:
                        file.unlink(missing_ok=True)
        remove_made(self._path)

    def _handlers(self) -> list[logging.FileHandler]:
        """Those that write into the folder."""
        handlers = [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
        return [h for h in handlers if Path(h.baseFilename).parent == self._path]


def require_unused(run: RunFolder, key: str) -> None:
    """Raise ConfigError, with `key` to change, unless a new run can be kept in that folder without touching a file."""
    require_no_run(run, key)
    refuse_existing(key, run.path, run.written)


def require_no_run(run: RunFolder, key: str) -> None:
    """Raise ConfigError, with `key` to change, if a run has begun in that folder."""
    if first(run.journal, "start") is not None:
        held = f"'{run.path}' holds a run already"
        if status(run.journal) == "FINISHED":
            raise ConfigError(key, f"{held}, which has finished (resume= has nothing to do); choose another folder")
        raise ConfigError(key, f"{held}; choose another folder, or continue it with:  {resume_command(run.path)}")


def refuse_existing(key: str, folder: Path, files: Sequence[Path]) -> None:
    """Raise ConfigError, with `key` to change, if one of the files that are to be written is there already.

    Where `files` names a directory, it may be there as long as it is empty.
    """
    there = [file for file in files if _is_taken(file)]
    there += [tmp for file in files if os.path.lexists(tmp := file.with_name(file.name + ".tmp"))]
    there = [os.path.relpath(file, folder) for file in there]
    if there:
        names = ", ".join(there[:4]) + (" ..." if there[4:] else "")
        raise ConfigError(key, f"'{folder}' has files that would be overwritten ({names}); choose another folder")


def _is_taken(path: Path) -> bool:
    return os.path.lexists(path) and not (path.is_dir() and not path.is_symlink() and not any(path.iterdir()))
