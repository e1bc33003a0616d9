"""Stops trials and workers on signals: Ctrl-C, SIGTERM and SIGUSR2 from a batch system, SIGHUP from a terminal."""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType

from sweep.utils.background import in_background


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
    """Return the signals that stop training.

    SIGHUP is left out if it is ignored, as under nohup, and a batch system's warning if the program uses that signal
    for something else.
    """
    signals = [signal.SIGINT, signal.SIGTERM]
    if _is_free(warning_signal()):
        signals.append(warning_signal())
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return [signum for signum in signals if signal.getsignal(signum) is not None]


def _is_free(signum: signal.Signals) -> bool:
    """Return whether nobody handles the signal, or only sweep or submitit do."""
    handler = signal.getsignal(signum)
    if handler != signal.SIG_DFL:
        return (getattr(handler, "__module__", None) or "").partition(".")[0] in ("sweep", "submitit")
    status = Path("/proc/self/status")  # Python does not know of handlers in C, such as those of faulthandler
    caught = re.search(r"SigCgt:\s*(\w+)", status.read_text()) if status.exists() else None
    return caught is None or not int(caught[1], 16) >> (signum - 1) & 1


def warning_signal() -> signal.Signals:
    """Return the signal that a batch system sends some time before it ends a job.

    It is SIGUSR2, unless the variable that submitit reads names another.
    """
    return getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}", signal.SIGUSR2)


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn the first signal that stops training into a request to stop. A second Ctrl-C stops at once.

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
    kept = {*stopping_signals()} & {signal.SIGINT, signal.SIGHUP}

    def wait(over: threading.Event) -> None:
        while not over.is_set():
            if (found := signal.sigtimedwait(kept, 0.2)) is not None:
                handle(found.si_signo)

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, kept)
    resource_tracker.ensure_running()  # now, since this unblocks Ctrl-C; SIGHUP would kill the tracker
    signal.pthread_sigmask(signal.SIG_BLOCK, kept)
    try:
        with in_background(wait):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
