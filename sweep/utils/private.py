"""Files that only their owner may read: those whose text may hold a secret, such as configs, journals and logs."""

import io
import logging
import os
from pathlib import Path

from sweep.utils.ownership import note_log

_OWNER_ALONE = 0o600


def private(path: str | os.PathLike[str], flags: int) -> int:
    """An opener for `open`: a file that is made by it is the owner's alone."""
    return os.open(path, flags, _OWNER_ALONE)


class PrivateLog(logging.FileHandler):
    """The log of a run."""

    def _open(self) -> io.TextIOWrapper:
        note_log(Path(self.baseFilename))
        file = open(self.baseFilename, self.mode, encoding=self.encoding, errors=self.errors, opener=private)  # noqa: SIM115
        assert isinstance(file, io.TextIOWrapper)
        return file
