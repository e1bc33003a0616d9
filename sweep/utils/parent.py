"""The process that started this one: outlive it, or end with it."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1  # sys/prctl.h


@contextmanager
def outliving(parent: int) -> Iterator[None]:
    """Let this process outlive its parent inside the `with` block, and no longer.

    Otherwise a launcher's process stays for ever if the launcher is killed: it waits for its next job, or until
    somebody takes its result. A process that `parent` did not start is left as it is.
    """
    if os.getppid() != parent:
        yield
        return
    _end_at_death_of_parent(0)  # of an earlier job
    try:
        yield
    finally:
        end_with_parent()
        if os.getppid() != parent:
            os._exit(0)  # nobody waits for the result


def end_with_parent() -> None:
    """Make the kernel kill this process when the thread that started it ends. Only on Linux."""
    _end_at_death_of_parent(signal.SIGKILL)


def _end_at_death_of_parent(signum: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signum)
