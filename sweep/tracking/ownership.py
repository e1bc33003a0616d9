"""Checks that a folder is free for a new run, and cleans up after a job that was refused."""

import logging
import os
from contextlib import suppress
from pathlib import Path

from sweep.tracking.folders import Busy, RunFolder
from sweep.tracking.journal import first, status
from sweep.tracking.provenance import resume_command
from sweep.utils.errors import ConfigError, DamagedJournal
from sweep.utils.ownership import is_new_log, refuse_existing, remove_empty_logs, remove_hydras_files, remove_made


class JobFolder:
    """The folder that Hydra gave to a job. Create this object before the job writes anything into the folder."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._before = set(os.listdir(path)) if self._path.is_dir() else set()

    def leave_unused(self) -> None:
        """Close the job's logs, and remove the files that this process wrote if the job never began."""
        logs = [Path(handler.baseFilename) for handler in self._handlers()]
        for handler in self._handlers():
            logging.getLogger().removeHandler(handler)
            handler.close()
        remove_empty_logs()
        run = RunFolder(self._path)
        if run.path.is_dir() and not _has_begun(run):
            with suppress(Busy, OSError), run.lock():  # if it is locked, the files belong to another process
                for file in (*logs, run.lock_file):
                    if file.name not in self._before or is_new_log(file):
                        file.unlink(missing_ok=True)
        remove_hydras_files(below=self._path)
        remove_made(self._path)

    def _handlers(self) -> list[logging.FileHandler]:
        """Return the log handlers that write into the folder."""
        handlers = [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
        return [h for h in handlers if Path(h.baseFilename).parent == self._path]


def require_unused(run: RunFolder, key: str) -> None:
    """Raise ConfigError, naming `key`, if a new run in that folder would overwrite a file."""
    with suppress(DamagedJournal, OSError):  # not a run's journal, or a damaged one: a file in the way in any case
        require_no_run(run, key)
    refuse_existing(key, run.path, run.written)


def require_no_run(run: RunFolder, key: str) -> None:
    """Raise ConfigError, naming `key`, if a run has begun in that folder."""
    if first(run.journal, "start") is not None:
        held = f"'{run.path}' holds a run already"
        if status(run.journal) == "FINISHED":
            raise ConfigError(key, f"{held}, which has finished (resume= has nothing to do); choose another folder")
        raise ConfigError(key, f"{held}; choose another folder, or continue it with:  {resume_command(run.path)}")


def _has_begun(run: RunFolder) -> bool:
    """Return whether the folder holds the journal of a run. A file of the user's with that name does not count."""
    with suppress(DamagedJournal, OSError):
        return first(run.journal, "start") is not None
    return False
