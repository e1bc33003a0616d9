"""Stopping a trial, or a study's workers, from outside: Ctrl-C, SIGTERM from a batch system, SIGHUP from a terminal."""

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


def stopping_signals() -> list[signal.Signals]:
    """Return the signals that stop training; without SIGHUP where it is ignored, as under nohup."""
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if is_ignored else [signal.SIGHUP])]


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into a request that the loop honours; a second Ctrl-C stops at once.

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

    before = {signum: signal.signal(signum, request) for signum in stopping_signals()}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, before.keys() - {signal.SIGTERM})
    try:
        yield stop
    finally:
        _current = None
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def interrupts_kept_from_children(handle: Callable[[int], None]) -> Iterator[None]:
    """A terminal sends Ctrl-C, and SIGHUP, to child processes too. One that is started meanwhile gets it once it is
    ready for it, within `stop_on_signal`, and not while it loads. `handle` is called with the signal, from a thread.
    """
    over = threading.Event()
    kept = {*stopping_signals()} - {signal.SIGTERM}

    def wait() -> None:
        while not over.is_set():
            if (found := signal.sigtimedwait(kept, 0.2)) is not None:
                handle(found.si_signo)

    resource_tracker.ensure_running()  # at its start it would unblock the signal
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, kept)
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
