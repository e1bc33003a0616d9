"""A study that runs in a thread of this program."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

from sweep.storage.quiet import quiet_optuna
from sweep.study.prepared import PreparedStudy
from sweep.study.reading import NoStudy, read_study
from sweep.study.study_result import StudyResult
from sweep.utils import html


class StudyHandle:
    """A study that runs in a thread, as `run_study(..., wait=False)` returns it. Python waits for it before it exits.

    >>> import sweep
    >>> base = ["experiment=debug", "tracking=off"]
    >>> running = sweep.run_study(base, n_trials=2, pruner="none", study_name="aside", wait=False)
    >>> running.result().name
    'aside'
    >>> running.done()
    True

    Attributes:
        name: the study's name.
        folder: the study's folder.
    """

    def __init__(self, prepared: PreparedStudy, result: Callable[[], StudyResult]) -> None:
        """Start the study. `result` runs it, and returns it as it is then."""
        self.name, self.folder = prepared.name, prepared.folder.path
        self._prepared, self._result = prepared, result
        self._future: Future[StudyResult] = Future()
        threading.Thread(target=self._run, name=f"study {prepared.name}").start()

    def done(self) -> bool:
        """Return True if the study has ended, for whatever reason."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> StudyResult:
        """Wait until the study ends, and return it.

        Args:
            timeout: how long to wait, in seconds; None waits without a limit.

        Raises:
            TimeoutError: it has not ended by then. It goes on.
            Interrupted: `stop` was called. The same call of `run_study` resumes the study.
            Exception: whatever `run_study` raises.
        """
        return self._future.result(timeout)

    def study(self) -> StudyResult:
        """Return the study as it is now. Raise ConfigError if it has not begun yet."""
        with quiet_optuna():
            folder = self._prepared.folder
            return StudyResult.of(read_study(folder, self._prepared.spec.settings.storage), folder)

    def stop(self) -> None:
        """Ask the study to stop. Its trials save a checkpoint at the end of their epoch. This does not wait."""
        if not self.done():
            self._prepared.request_stop()

    def _run(self) -> None:
        try:
            self._future.set_result(self._result())
        except BaseException as error:  # `result` raises it, an Interrupted too
            self._future.set_exception(error)

    def __repr__(self) -> str:
        return f"<StudyHandle of {self.name}, {'ended' if self.done() else 'running'}>"

    def _repr_html_(self) -> str:
        """Return how the study stands, as a notebook shows it."""
        try:
            return self.study()._repr_html_()
        except NoStudy:
            return html.paragraph(f"study {self.name} {'has not begun' if self.done() else 'begins'}")
