"""The trial that a training function gets in a run or a study. It records, reports to the study, saves and stops."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from sweep.config.schema import Config
from sweep.tracking.folders import RunFolder
from sweep.tracking.progress import Show, progress
from sweep.tracking.run_recorder import Membership, RunRecorder
from sweep.tracking.stored_run import saved_state
from sweep.training.trial import refuse_other_epoch
from sweep.utils.errors import DISK_FULL, ConfigError, Damaged, Diverged, Interrupted, Pruned, TrialTimedOut
from sweep.utils.signals import StopRequest, stop_on_signal

log = logging.getLogger("sweep")

Report = Callable[[int, Mapping[str, float]], None]  # of an epoch and its metrics; in a study it may raise Pruned
Keep = Callable[[bool], None]  # called once the checkpoint is new, or with True once the record has ended
Pause = Callable[[int], None]  # of the epoch that is finished; other trials train until it returns


class RecordedTrial:
    """The implementation of `sweep.Trial`, for every executor. The executor calls `end` when the trial is over.

    The record begins with the first call of `describe`, `report`, `log`, `save`, `finish` or `log_artifact`. Before
    that, the trial can be refused without leaving a trace, and a signal ends the process. After that, a signal asks the
    training function to save its state and stop.

    Use the trial in a `with` statement: leaving it closes the record. Not thread-safe.

    Attributes:
        train_s: seconds of training in this process, from the beginning of the record to the last report, or to the
            error that ended the trial. Time in which other trials train does not count. A training function of the
            user's own may train before it begins the record, so the time begins with its call.
    """

    def __init__(
        self,
        run: RunFolder,
        config: Config,
        *,
        output_dir: Path,
        store: str | None,
        member: Membership | None = None,
        report: Report | None = None,
        pause: Pause | None = None,
        keep: Keep | None = None,
        stop: StopRequest | None = None,
        live: bool = False,
        n_epochs: int | None = None,
        is_timed: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the trial. Nothing is written yet.

        Args:
            run: the trial's folder. Hold its lock as long as the trial exists (`run_recorder.locked`).
            config: the configuration to record. It must have been validated.
            output_dir: the folder that results go to, absolute.
            store: the tracking store to record, as `recorded_uri` returns it; None without tracking.
            member: the trial's place in a study; None outside a study.
            report: called after each epoch with the epoch and its metrics. What it raises ends the trial.
            pause: called with the epoch after each report, unless a stop was requested.
            keep: keeps a copy of the trial's folder. It must not raise.
            stop: a request to save and stop; by default a signal makes one, once the record has begun.
            live: True shows progress as a live line instead of log lines. In a study, the study shows the progress.
            n_epochs: the number of epochs to show; by default `trainer.epochs`. 0 if it is not known.
            is_timed: False leaves it to the executor to count `train_s`.
            clock: returns seconds. It decides when a checkpoint is due.
        """
        self._run, self._config, self._member = run, config, member
        self._output_dir, self._store = output_dir, store
        self._ask, self._pause, self._live, self._clock = report, pause, live, clock
        self._keep: Keep = keep or (lambda is_over: None)
        self._n_epochs = (config.trainer.epochs or 0) if n_epochs is None else n_epochs
        self._recorder: RunRecorder | None = None
        self._open = ExitStack()
        self._stop, self._stops_on_signals = stop or StopRequest(), stop is None
        self._show: Show = lambda epoch, metrics: None
        self._saved: dict[str, Any] | None = None
        self._epoch: int | None = None  # None until the checkpoint is read
        self._is_timed, self._since = is_timed, time.perf_counter()
        self._saved_at = clock()
        self._was_reported_since_stop = False
        self._values: dict[str, float] = {}
        self.train_s = 0.0

    @property
    def has_begun(self) -> bool:
        """True once the record of this attempt has begun."""
        return self._recorder is not None

    @property
    def number(self) -> int | None:
        """The number of the trial in its study, from 0; None outside a study."""
        return None if self._member is None else self._member.number

    @property
    def params(self) -> Mapping[str, Any]:
        """The values that the study chose, by config key; empty outside a study."""
        return {} if self._member is None else self._member.params

    @property
    def folder(self) -> Path:
        """The trial's own folder."""
        return self._run.path

    @property
    def epoch(self) -> int:
        """The epoch of the last checkpoint, also of an earlier process; 0 if there is none.

        Raises:
            Damaged: the checkpoint or the journal cannot be read. In a study, a damaged checkpoint counts as none.
        """
        if self._epoch is None:
            self._saved = self._load()
        assert self._epoch is not None
        return self._epoch

    @property
    def should_save(self) -> bool:
        """True if the last checkpoint is `trainer.checkpoint_interval_s` old, or if a stop was requested."""
        is_due = self._clock() - self._saved_at >= self._config.trainer.checkpoint_interval_s
        return is_due or self.should_stop

    @property
    def should_stop(self) -> bool:
        """True if a stop was requested, by a signal or by the study."""
        return self._stop.signum is not None

    def describe(self, *, dataset: Mapping[str, Any] | None = None, device: str | None = None) -> None:
        """Begin the record with a description of the data and the device. If the record has begun, do nothing.

        Args:
            dataset: the description of the data, in the form of MLflow's data sets.
            device: the kind of device, such as cpu or cuda.

        Raises:
            ConfigError: the trial is resumed, but its data have changed.
            OSError: the record cannot be written.
        """
        self._begin(dataset, device)

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a finished epoch, report them to the study, and let other trials train.

        Args:
            epoch: counts from 1.
            metrics: by name, such as `val/loss`. An epoch that is recorded already is not recorded again.

        Raises:
            Pruned: the study stops the trial.
            Interrupted: a stop was requested before the last report, and the state was not saved since.
            OSError: the record cannot be written.
        """
        now = time.perf_counter()
        recorder = self._begin()
        self._count_time(now)
        try:
            recorder.log([epoch], {name: [value] for name, value in metrics.items()})
            self._show(epoch, metrics)
            if self._ask is not None:
                self._ask(epoch, metrics)
            if self._pause is not None and not self.should_stop:
                self._pause(epoch)
        finally:
            self._since = time.perf_counter()
        if self._was_reported_since_stop:
            assert self._stop.signum is not None
            raise Interrupted(self._stop.signum)
        self._was_reported_since_stop = self.should_stop

    def log(self, metrics: Mapping[str, float | Sequence[float]], step: int | Sequence[int]) -> None:
        """Record points of further curves, which the study ignores.

        Args:
            metrics: by name, a single value, or one value for each step.
            step: one step, or several in increasing order. Steps that are recorded already are skipped.

        Raises:
            OSError: the record cannot be written.
        """
        steps = step if isinstance(step, Sequence) else [step]
        columns = {name: value if isinstance(value, Sequence) else [value] for name, value in metrics.items()}
        self._begin().log(steps, columns)

    def save(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint atomically. The journal is flushed to the disk before it.

        Args:
            epoch: the last finished epoch.
            state: tensors, numbers, texts, and lists and mappings of them, as `torch.load(weights_only=True)` accepts.

        Raises:
            ValueError: `state` has a key `epoch` with another value.
            Interrupted: a stop was requested. The state is saved.
            OSError: there is no room; the earlier checkpoint stays.
        """
        refuse_other_epoch(epoch, state)
        self._begin().save({**state, "epoch": epoch})
        self._epoch, self._saved = epoch, None
        self._saved_at = self._clock()
        if self._stop.signum is not None:  # the copy is made as the record ends
            raise Interrupted(self._stop.signum)
        self._keep(False)

    def restore(self) -> dict[str, Any] | None:
        """Return the state that was saved last, with its tensors on the CPU; None if there is none.

        Raises:
            Damaged: the checkpoint or the journal cannot be read. In a study, a damaged checkpoint only logs a
                warning, and the trial trains from its beginning.
        """
        state = self._load() if self._saved is None else self._saved
        self._saved = None  # frees a large object
        if state is not None:
            log.info("resuming %s after epoch %d", self._run.path, self._epoch)
        elif self._run.journal.exists():
            log.info("resuming %s from its beginning: it left no checkpoint", self._run.path)
        return state

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Keep single values, such as test metrics, until `end` records them. Begins the record.

        Args:
            metrics: by name. A later value replaces an earlier one of the same name.
        """
        self._begin()
        self._values.update(metrics)

    def log_artifact(self, path: Path) -> None:
        """Keep a file in the trial's folder, from where it is uploaded to MLflow (`RunRecorder.add_artifact`).

        Args:
            path: the file.

        Raises:
            OSError: the file cannot be copied.
        """
        self._begin().add_artifact(path)

    def cause_of(self, error: BaseException) -> BaseException:
        """Return an `Interrupted` if a request to stop may have caused the error, otherwise the error itself.

        A batch system sends its signals to all processes of a job, so the processes that help to train may die of them.
        Another library may have a handler that raises.
        """
        stops = self._stop.signum is not None and isinstance(error, Exception | SystemExit)
        if (
            not stops
            or isinstance(error, Pruned | Diverged | ConfigError | TrialTimedOut)
            or (isinstance(error, OSError) and error.errno in DISK_FULL)
        ):
            return error
        assert self._stop.signum is not None
        return Interrupted(self._stop.signum)

    def end(self, error: BaseException | None = None) -> None:
        """Record how the trial ended. If the record has not begun, do nothing.

        Args:
            error: what ended the trial early; None if it is complete.

        Raises:
            OSError: the end of a complete trial cannot be written. With an `error`, an OSError is suppressed: the disk
                may be what failed in the first place.
        """
        recorder = self._recorder
        if recorder is None:
            return
        if error is not None:
            self._count_time(time.perf_counter())
        with suppress(*([] if error is None else [OSError])):
            recorder.end(error, {**self._values, "time/train_s": self.train_s})
        self._keep(True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def _begin(self, dataset: Mapping[str, Any] | None = None, device: str | None = None) -> RunRecorder:
        """Return the recorder. The first call begins the record, handles signals from then on and shows progress."""
        if self._recorder is not None:
            return self._recorder
        recorder = RunRecorder(self._run, self._member)
        self._open.callback(recorder.close)
        recorder.start(self._config, output_dir=self._output_dir, store=self._store, dataset=dataset, device=device)
        self._recorder = recorder
        if self._stops_on_signals:
            self._stop = self._open.enter_context(stop_on_signal())
        if self._member is None:
            self._show = self._open.enter_context(progress(self._n_epochs, self.epoch, self._live))
        if not self._config.is_function:
            self._since = time.perf_counter()
        return recorder

    def _load(self) -> dict[str, Any] | None:
        """Read the checkpoint, and set `_epoch` to its epoch. Return its state; None if there is no checkpoint."""
        state = None
        try:
            state = saved_state(self._run)
        except Damaged as error:
            if self._member is None:
                raise
            log.warning("warning: %s; it is trained from its beginning", error)
        self._epoch = 0 if state is None else state["epoch"]
        return state

    def _count_time(self, now: float) -> None:
        """Add the seconds since the last call, or since the last report returned, to `train_s`."""
        if self._is_timed:
            self.train_s += now - self._since
        self._since = now
