"""Stopping a trial from outside: Ctrl-C, or SIGTERM from a batch system."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """Set `signum` and the training loop saves a checkpoint after the update in progress, and stops."""

    signum: int | None = None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turns the first Ctrl-C or SIGTERM into a request that the loop honours; a second Ctrl-C stops at once."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield stop
        return

    def request(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {signum: signal.signal(signum, request) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
