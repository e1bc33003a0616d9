"""Stopping a trial, or a study's workers, from outside: Ctrl-C, or SIGTERM from a batch system."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from types import FrameType


@dataclass
class StopRequest:
    """Set `signum` and the training loop saves a checkpoint after the update in progress, and stops."""

    signum: int | None = None


_current: StopRequest | None = None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turns the first Ctrl-C or SIGTERM into a request that the loop honours; a second Ctrl-C stops at once.

    Within another `stop_on_signal` it is that one's request, which may have been made already.
    """
    global _current
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield StopRequest()
        return
    if _current is not None:
        yield _current
        return
    stop = _current = StopRequest()

    def request(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {signum: signal.signal(signum, request) for signum in (signal.SIGINT, signal.SIGTERM)}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield stop
    finally:
        _current = None
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def interrupts_kept_from_children(handle: Callable[[int], None]) -> Iterator[None]:
    """A terminal sends Ctrl-C to child processes too. One that is started meanwhile gets it once it is ready for it,
    within `stop_on_signal`, and not while it loads. `handle` is called with SIGINT, from a thread.
    """
    over = threading.Event()

    def wait() -> None:
        while not over.is_set():
            if signal.sigtimedwait({signal.SIGINT}, 0.2) is not None:
                handle(signal.SIGINT)

    resource_tracker.ensure_running()  # at its start it would unblock the signal
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
