"""Folders of jobs: free for a new run, or left as they were by a job that was refused."""

import logging
import os
from contextlib import suppress
from pathlib import Path

from sweep.tracking.folders import Busy, RunFolder
from sweep.tracking.journal import first, status
from sweep.tracking.provenance import resume_command
from sweep.utils.errors import ConfigError, DamagedJournal
from sweep.utils.ownership import refuse_existing, remove_hydras_files, remove_made
from sweep.utils.private import PrivateLog


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
        if run.path.is_dir() and not _has_begun(run):
            with suppress(Busy, OSError), run.lock():  # else the files are another process's
                for file in (*logs, run.lock_file):
                    if file.name not in self._before:
                        file.unlink(missing_ok=True)
        remove_hydras_files(below=self._path)
        remove_made(self._path)

    def _handlers(self) -> list[logging.FileHandler]:
        """Those that write into the folder."""
        handlers = [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
        return [h for h in handlers if Path(h.baseFilename).parent == self._path]


def require_unused(run: RunFolder, key: str) -> None:
    """Raise ConfigError, with `key` to change, unless a new run can be kept in that folder without touching a file.

    The run's own log may have a warning by now.
    """
    with suppress(DamagedJournal, OSError):  # then it is no run's, or a damaged one's: a file in the way in any case
        require_no_run(run, key)
    logs = [log for log in logging.getLogger().handlers if isinstance(log, PrivateLog)]
    made = [Path(log.baseFilename) for log in logs if log.made]
    refuse_existing(key, run.path, [file for file in run.written if file not in made])


def require_no_run(run: RunFolder, key: str) -> None:
    """Raise ConfigError, with `key` to change, if a run has begun in that folder."""
    if first(run.journal, "start") is not None:
        held = f"'{run.path}' holds a run already"
        if status(run.journal) == "FINISHED":
            raise ConfigError(key, f"{held}, which has finished (resume= has nothing to do); choose another folder")
        raise ConfigError(key, f"{held}; choose another folder, or continue it with:  {resume_command(run.path)}")


def _has_begun(run: RunFolder) -> bool:
    """Return whether the folder has the record of a run; a file of the user's may have its name."""
    with suppress(DamagedJournal, OSError):
        return first(run.journal, "start") is not None
    return False
