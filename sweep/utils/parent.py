"""The process that started this one: outlive it, or end with it."""

import ctypes
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1  # sys/prctl.h
_POLL_S = 1.0

_is_idle = threading.Event()  # no work is done that should outlive the parent


@contextmanager
def outliving(parent: int) -> Iterator[None]:
    """Let this process outlive its parent inside the `with` block, and no longer.

    Otherwise a launcher's process stays for ever if the launcher is killed: it waits for its next job, or until
    somebody takes its result. A process that `parent` did not start is left as it is.
    """
    if os.getppid() != parent:
        yield
        return
    _is_idle.clear()
    try:
        yield
    finally:
        if os.getppid() != parent:
            os._exit(0)  # nobody waits for the result
        _is_idle.set()
        _watch(parent)


@functools.cache
def _watch(parent: int) -> None:
    """Watch the parent in a thread. The kernel could do so too, but it watches the thread that started the process."""

    def watch() -> None:
        while _is_idle.wait() and os.getppid() == parent:
            time.sleep(_POLL_S)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def end_with_parent() -> None:
    """Make the kernel kill this process when the thread that started it ends. Only on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
