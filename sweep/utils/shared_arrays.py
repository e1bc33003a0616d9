"""Objects with large arrays, whose memory several processes of one machine share.

The arrays lie in a file without a name, which each process maps into its memory. Nothing has to be removed: the system
frees the file when the last of these processes ends, however it ends.
"""

import mmap
import os
import pickle
import secrets
import stat
import tempfile
from typing import IO, Any

import numpy as np

_FEWEST_BYTES = 32 * 2**20  # less is not worth a file
_MOST_PICKLED = 0.25  # the largest pickle, as a share of the arrays' bytes; each process has its own copy
_ALIGNED = 64  # bytes: a line of a CPU's cache
_SPARE = 2  # times the arrays' size must be free on the disk


class SharedArrays:
    """An object whose arrays are in a file that other processes can map while this one keeps it open.

    It can be pickled and sent to another process, which calls `load`. A process that changes an array changes only its
    own copy of it.
    """

    def __init__(self, file: IO[bytes], token: bytes, pickled: bytes, places: list[tuple[int, int]]) -> None:
        """Describe a file that is written. Use `shared` to make one.

        Args:
            file: the open file.
            token: what it begins with.
            pickled: the object without its arrays.
            places: start and end of each array in the file.
        """
        self._file: IO[bytes] | None = file
        self._path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
        self._token, self._pickled, self._places = token, pickled, places

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def load(self) -> Any:
        """Return the object, with arrays that are mapped; None if the file is not there, as on another machine."""
        try:
            with open(self._path, "rb", opener=_opened) as file:
                if not self._is_in(file):
                    return None
                mapped = memoryview(mmap.mmap(file.fileno(), self._places[-1][1], access=mmap.ACCESS_COPY))
        except OSError:
            return None
        return pickle.loads(self._pickled, buffers=[mapped[start:end] for start, end in self._places])

    def _is_in(self, file: IO[bytes]) -> bool:
        """Return whether the file is the one that was written, in full."""
        is_whole = os.fstat(file.fileno()).st_size == self._places[-1][1]
        return is_whole and file.read(len(self._token)) == self._token

    def close(self) -> None:
        """Let the file go. No other process can map it any more; those that have mapped it keep it."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _opened(path: str, flags: int) -> int:
    """Open a path that may be anything, such as a pipe on which nobody writes. Raises OSError for a folder."""
    opened = os.open(path, flags | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(opened).st_mode):
        return opened
    os.close(opened)
    raise OSError(f"'{path}' is no file")


def shared(value: Any) -> SharedArrays | None:
    """Write an object's arrays to a file that other processes of this machine can map.

    Returns:
        What they need for it; None if the object is too small for that, or this machine cannot do it.
    """
    buffers: list[pickle.PickleBuffer] = []
    try:
        pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        arrays = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
        n_bytes = sum(array.nbytes for array in arrays)
        is_worth_it = n_bytes >= _FEWEST_BYTES and len(pickled) <= _MOST_PICKLED * n_bytes
        if not is_worth_it or not os.path.exists("/proc/self/fd"):
            return None
        return _written(pickled, arrays)
    except Exception:  # your own data may refuse to be pickled in any way, and a disk to be written to
        return None


def _written(pickled: bytes, arrays: list[np.ndarray]) -> SharedArrays | None:
    """Write the arrays to a new file in the folder for temporary files. Raises OSError if that fails."""
    token = secrets.token_bytes(_ALIGNED)
    places, end = [], len(token)
    for array in arrays:  # as far from a multiple of 64 bytes as in memory, since the rounding of sums may depend on it
        start = -(-end // _ALIGNED) * _ALIGNED + array.ctypes.data % _ALIGNED
        end = start + array.nbytes
        places.append((start, end))
    folder = os.statvfs(tempfile.gettempdir())
    if folder.f_bavail * folder.f_frsize < _SPARE * end:
        return None
    file = tempfile.TemporaryFile()  # noqa: SIM115  # it stays open until `close`
    try:
        file.write(token)
        for (start, _), array in zip(places, arrays, strict=True):
            file.seek(start)
            file.write(array.data)
        file.flush()
    except BaseException:
        file.close()
        raise
    return SharedArrays(file, token, pickled, places)
