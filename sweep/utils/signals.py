"""Stops trials and workers on signals: Ctrl-C, SIGTERM from a batch system, SIGHUP from a terminal."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType


class StopRequest:
    """A request to stop. Once `signum` is set, the training loop finishes the current update, saves and stops."""

    def __init__(self, above: "StopRequest | None" = None) -> None:
        """Make a request that is not set. A request `above`, to stop a whole worker, holds for this one too."""
        self._above = above
        self._signum: int | None = None

    @property
    def signum(self) -> int | None:
        """The number of the signal that asks for the stop; None as long as nobody asks."""
        above = None if self._above is None else self._above.signum
        return self._signum if above is None else above

    @signum.setter
    def signum(self, signum: int | None) -> None:
        self._signum = signum

    @property
    def is_alone(self) -> bool:
        """True if this request is set, but the one above it is not."""
        return self._signum is not None and (self._above is None or self._above.signum is None)


_current: StopRequest | None = None


def stopping_signals() -> list[signal.Signals]:
    """Return the signals that stop training. SIGHUP is left out if it is ignored, as under nohup."""
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if is_ignored else [signal.SIGHUP])]


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into a request to stop. A second Ctrl-C stops at once.

    A nested `stop_on_signal` yields the request of the outer one, which may be set already. In a thread other than the
    main thread, no signal sets the request.
    """
    global _current
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
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
    """Block Ctrl-C and SIGHUP in child processes that are started inside the `with` block.

    A terminal sends these signals to child processes too. A child receives them only once it enters `stop_on_signal`,
    not while it loads. In this process, `handle` is called with the signal's number, from another thread.
    """
    over = threading.Event()
    kept = {*stopping_signals()} - {signal.SIGTERM}

    def wait() -> None:
        while not over.is_set():
            if (found := signal.sigtimedwait(kept, 0.2)) is not None:
                handle(found.si_signo)

    resource_tracker.ensure_running()  # when it starts later, it would unblock the signals
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, kept)
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
