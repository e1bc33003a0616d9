"""Loaded by every Python process that has this folder on its PYTHONPATH: notes what it touches outside a sandbox.

SANDBOX names the folder in which everything is allowed. Below its parent nothing else may be read; nowhere else may
anything be written, but for devices; nothing may be connected to. What is done all the same becomes a line of the file
SANDBOX_LOG.
"""

import os
import sys
from typing import Any

_SANDBOX = os.path.realpath(os.environ["SANDBOX"])
_AROUND = os.path.dirname(_SANDBOX)
_OWN = (os.path.dirname(os.path.realpath(os.environ["SANDBOX_LOG"])), os.path.dirname(os.path.realpath(__file__)))
_WRITES = {
    **dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime"), (0,)),
    **{"os.rename": (0, 1), "os.link": (0, 1), "os.symlink": (1,)},
}
_READS = ("os.listdir", "os.scandir", "os.chdir")
_CREATES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_log = os.open(os.environ["SANDBOX_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        _note("write" if arguments[2] & _CREATES else "read", arguments[0])
    elif event in _WRITES:
        for i in _WRITES[event]:
            _note("write", arguments[i])
    elif event in _READS:
        _note("read", arguments[0])
    elif event == "sqlite3.connect":
        _note("write", str(arguments[0]).removeprefix("file:").partition("?")[0])
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        _tell("connect", arguments[1])


def _note(what: str, path: Any) -> None:
    if path is None or isinstance(path, int):
        return
    real = os.path.realpath(os.fsdecode(path))
    if _is_in(real, _SANDBOX) or any(_is_in(real, own) for own in _OWN):
        return
    if _is_in(real, _AROUND) or (what == "write" and not real.startswith(("/dev/", "/proc/"))):
        _tell(what, real)


def _tell(what: str, whom: object) -> None:
    os.write(_log, f"{what} {whom} by {' '.join(sys.argv[:2])}\n".encode())


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


sys.addaudithook(_hook)
