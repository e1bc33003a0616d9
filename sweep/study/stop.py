"""What stops a command's run of a study: a signal, or the request of another process."""

import _thread
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from sweep.tracking.folders import StudyFolder
from sweep.utils.signals import interrupts_kept_from_children, stopping_signals, warning_signal


class Stop:
    """Whether a run of a study is to stop.

    Attributes:
        signum: the signal that stops it, SIGTERM for the request of another process; None while it goes on.
    """

    def __init__(self, folder: StudyFolder, embedded: bool) -> None:
        """Store the study's folder, and whether a Python program runs the study."""
        self._folder, self._embedded = folder, embedded
        self.signum: int | None = None

    @contextlib.contextmanager
    def by_signals(self, request: Path, workers_are_here: bool) -> Iterator[None]:
        """Handle signals: the first makes all workers save and stop, the second ends this command at once.

        - A terminal that is closed may send SIGHUP twice, and a batch system its warning. A second one is ignored.
        - A Python program that runs a study is not ended: the second signal raises a KeyboardInterrupt in it.
        - Python handles signals only in the main thread, so a study in another thread handles none.

        Args:
            request: the file that asks the workers to stop. It is removed in the end.
            workers_are_here: whether trials are trained in this process.
        """

        def stop(signum: int, frame: FrameType | None = None) -> None:
            if self.signum is not None and signum in (signal.SIGHUP, warning_signal()):
                return
            if self.signum is not None:
                if not self._embedded:
                    os._exit(128 + signum)
                if frame is not None:
                    raise KeyboardInterrupt
                _thread.interrupt_main(signal.Signals(signum))
            self.signum = signum
            self._folder.workers.mkdir(parents=True, exist_ok=True)
            request.touch()

        is_main = threading.current_thread() is threading.main_thread()
        before = {signum: signal.signal(signum, stop) for signum in (stopping_signals() if is_main else ())}
        is_kept = is_main and not workers_are_here
        try:
            with interrupts_kept_from_children(stop) if is_kept else contextlib.nullcontext():
                yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            request.unlink(missing_ok=True)
