"""Keep the study's own record, and have the upload process send the study to MLflow. One command does so at a time."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from sweep.execution.attempts import renumbered, trials_of
from sweep.figures.drawing import drawing_problem
from sweep.figures.plots import draw_plots
from sweep.storage.retry import RetryPolicy
from sweep.study.restoring import Gathering
from sweep.study.results import StudyRecord, best_trials
from sweep.study.shown import shown_trials
from sweep.tracking.chunks import forget_offsets, most_sent
from sweep.tracking.folders import Busy, StudyFolder
from sweep.tracking.journal import Journal, complete_size
from sweep.tracking.provenance import sync_command
from sweep.tracking.store import Store, recorded_uri
from sweep.tracking.study_upload import Damage
from sweep.tracking.upload_process import UploadProcess
from sweep.utils.checked_file import write_checked
from sweep.utils.errors import DamagedJournal, Unsent
from sweep.utils.terminal import safe, say


class Recording:
    """Keeps the study's record. Of several commands on one study, the one that holds the record's lock writes it.

    If that command stops, another one that still runs takes over. Close the recording at the end.

    Attributes:
        damage: set by `end` if a damaged record keeps MLflow from getting the complete study; otherwise None.
    """

    def __init__(
        self,
        study: optuna.Study,
        folder: StudyFolder,
        facts: dict[str, Any],
        config: str,
        store: Store,
        output_dir: Path,
        patiently: RetryPolicy,
        gathering: Gathering,
        shared: Callable[[Path], UploadProcess] | None = None,
    ) -> None:
        """Prepare to record. Nothing is written yet.

        Args:
            study: the study.
            folder: the study's folder.
            facts: the start event of the study's journal, without the tracking store.
            config: the content of `config.yaml`.
            store: where the study is uploaded to.
            output_dir: the folder that results go to.
            patiently: repeats the last looks at the study while the storage cannot be reached.
            gathering: brings the files of what other machines trained.
            shared: returns the upload process of an `output_dir` that several studies share; by default this study
                starts its own.
        """
        self._study, self._folder, self._facts, self._config = study, folder, facts, config
        self._store, self._output_dir, self._patiently, self._shared = store, output_dir, patiently, shared
        self._gathering, self._stack = gathering, ExitStack()
        self._record: StudyRecord | None = None
        self._upload_process: UploadProcess | None = None
        self.damage: Unsent | None = None

    @property
    def is_kept(self) -> bool:
        """True if this command keeps the record."""
        return self._record is not None

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """Record the finished trials, if this command keeps the record or can take it over."""
        if self._record is None:
            self._try_to_begin()
        if self._record is not None:
            self._gathering.update(trials)
            self._record.update(trials)

    def end(self, status: str, timeout_s: float) -> None:
        """Record how the command ended, and wait for the upload. If MLflow then lacks something, print a warning.

        If a damaged record is the reason, a later sync cannot send everything either, and `damage` is set instead.

        Args:
            status: FINISHED, FAILED or KILLED.
            timeout_s: how long to wait for the upload, in seconds.
        """
        self.update(self._patiently(lambda: trials_of(self._study)))
        record = self._record
        if record is None or self._upload_process is None:
            return
        if self._shared is None:  # a comparison draws one plot of all its studies instead
            problem = drawing_problem(
                lambda: draw_plots(
                    self._patiently(lambda: shown_trials(renumbered(self._study))),
                    self._folder.plots,
                )
            )
            if problem is not None:
                say(f"warning: cannot draw the study's plots ({problem})", err=True)
        record.end(status, self._folder, *self._patiently(lambda: (trials_of(self._study), best_trials(self._study))))
        problem, later = self._upload_process.finish_study(self._folder, timeout_s, _show_left), ""
        if problem is not None:
            later = sync_command(self._output_dir, self._store)
        if isinstance(problem, Damage):
            self.damage = Unsent(f"MLflow lacks some of the study: {problem}; then:  {later}")
        elif problem is not None:
            say(
                f"warning: MLflow lacks some of the study ({problem}). Nothing is lost; later:  {later}",
                err=True,
            )

    def close(self) -> None:
        """Close the journal and release its lock, and end the upload process unless it is shared."""
        self._stack.close()

    def _try_to_begin(self) -> None:
        """Begin to keep the record, unless another command does."""
        run = self._folder.run
        self._folder.trials.mkdir(parents=True, exist_ok=True)
        try:
            self._stack.enter_context(run.lock())
        except Busy:
            return
        is_shorter = complete_size(run.journal) < most_sent(run)  # lost lines are written again, from the storage
        try:
            journal = self._stack.enter_context(Journal(run.journal))
        except DamagedJournal as error:  # the study's storage has the same data
            raise error.with_remedy(
                "move it away and run the same command again: it writes the study's own record anew"
            ) from error
        if is_shorter:
            forget_offsets(run)
        if self._shared is None:
            self._upload_process = UploadProcess(self._output_dir)
            self._stack.callback(self._upload_process.close)
        else:
            self._upload_process = self._shared(self._output_dir)
        write_checked(run.config, self._config)
        record = StudyRecord(journal, self._study)
        record.start({**self._facts, "store": recorded_uri(self._store, self._output_dir)})
        self._upload_process.add_study(self._folder, self._store)
        self._record = record


def _show_left(n_left: int) -> None:
    if sys.stderr.isatty():
        text = f"MLflow: {n_left} runs to send" if n_left > 1 else ""
        print(f"\r{safe(text):<40}\r", end="", file=sys.stderr, flush=True)
