"""Files that only their owner may read: those whose text may hold a secret, such as configs, journals and logs."""

import logging
import os
from typing import IO, Any

_OWNER_ALONE = 0o600


def private(path: str | os.PathLike[str], flags: int) -> int:
    """An opener for `open`: a file that is made by it is the owner's alone."""
    return os.open(path, flags, _OWNER_ALONE)


class PrivateLog(logging.FileHandler):
    """The log of a run."""

    def _open(self) -> IO[Any]:
        return open(self.baseFilename, self.mode, encoding=self.encoding, errors=self.errors, opener=private)
