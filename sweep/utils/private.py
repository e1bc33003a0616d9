"""Files that only their owner can read, since they may contain secrets: configs, journals and logs."""

import io
import logging
import os
from pathlib import Path

from sweep.utils.ownership import note_log

_OWNER_ALONE = 0o600


def private(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file. If it is created, only its owner can read and write it. This function is an opener for `open`."""
    return os.open(path, flags, _OWNER_ALONE)


class PrivateLog(logging.FileHandler):
    """A handler for the log of a run, which only its owner can read."""

    def _open(self) -> io.TextIOWrapper:
        note_log(Path(self.baseFilename))
        file = open(self.baseFilename, self.mode, encoding=self.encoding, errors=self.errors, opener=private)  # noqa: SIM115
        assert isinstance(file, io.TextIOWrapper)
        return file
