"""The trial that a training function gets in a run or a study: it records, asks the study, saves and stops."""

import logging
import shutil
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
from sweep.utils.errors import Damaged, Interrupted
from sweep.utils.signals import StopRequest, stop_on_signal

log = logging.getLogger("sweep")

Report = Callable[[int, Mapping[str, float]], None]  # (epoch, its metrics); a study's raises Pruned
Pause = Callable[[int], None]  # lets others train, with the epoch that is finished


class RecordedTrial:
    """Implements `sweep.Trial`, however the trial is executed. Whoever executes it says how it ended, with `end`.

    Its record begins with the first thing that the training function says. Until then the trial may be refused without
    a trace, and a signal ends the process; from then on a signal asks the function to save and stop.

    train_s: seconds from the beginning of the record to the last report, or to what ended the trial early. Time in
    which others trained does not count.
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
        stop: StopRequest | None = None,
        live: bool = False,
        is_timed: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the trial; nothing is written yet.

        Args:
            run: its folder, which is this process's own as long as the trial lives.
            config: what it is trained by.
            output_dir: where results go.
            store: as `recorded_uri` has it.
            member: its place in a study.
            report: asked after each epoch; what it raises ends the trial.
            pause: called after each epoch, unless the trial is to stop.
            stop: what asks the trial to save and stop; by default a signal does, once the record has begun.
            live: whether progress is shown as a live line instead of log lines; a study shows that of its trials.
            is_timed: whether `train_s` is counted here; else who executes the trial counts it.
            clock: seconds, by which checkpoints are due.
        """
        self._run, self._config, self._member = run, config, member
        self._output_dir, self._store = output_dir, store
        self._ask, self._pause, self._live, self._clock = report, pause, live, clock
        self._recorder: RunRecorder | None = None
        self._open = ExitStack()
        self._stop, self._stops_on_signals = stop or StopRequest(), stop is None
        self._show: Show = lambda epoch, metrics: None
        self._saved: dict[str, Any] | None = None
        self._epoch: int | None = None  # None until the checkpoint is looked at
        self._is_timed, self._since = is_timed, time.perf_counter()
        self._saved_at = clock()
        self._was_reported_since_stop = False
        self._values: dict[str, float] = {}
        self.train_s = 0.0

    @property
    def has_begun(self) -> bool:
        """Whether there is anything on record of this attempt."""
        return self._recorder is not None

    @property
    def number(self) -> int | None:
        return None if self._member is None else self._member.number

    @property
    def params(self) -> Mapping[str, Any]:
        return {} if self._member is None else self._member.params

    @property
    def folder(self) -> Path:
        return self._run.path

    @property
    def epoch(self) -> int:
        if self._epoch is None:
            self._saved = self._load()
        assert self._epoch is not None
        return self._epoch

    @property
    def should_save(self) -> bool:
        is_due = self._clock() - self._saved_at >= self._config.trainer.checkpoint_interval_s
        return is_due or self.should_stop

    @property
    def should_stop(self) -> bool:
        return self._stop.signum is not None

    def describe(self, *, dataset: Mapping[str, Any] | None = None, device: str | None = None) -> None:
        self._begin(dataset, device)

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
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
        steps = step if isinstance(step, Sequence) else [step]
        columns = {name: value if isinstance(value, Sequence) else [value] for name, value in metrics.items()}
        self._begin().log(steps, columns)

    def save(self, epoch: int, state: Mapping[str, Any]) -> None:
        if state.get("epoch", epoch) != epoch:
            raise ValueError(f"state['epoch'] is {state['epoch']}, but the epoch that is saved {epoch}")
        self._begin().save({**state, "epoch": epoch})
        self._epoch, self._saved = epoch, None
        self._saved_at = self._clock()
        if self._stop.signum is not None:
            raise Interrupted(self._stop.signum)

    def restore(self) -> dict[str, Any] | None:
        """As `Trial.restore`. Raises Damaged; but a study's trial is then trained from its beginning."""
        state = self._load() if self._saved is None else self._saved
        self._saved = None  # it is large
        if state is not None:
            log.info("resuming %s after epoch %d", self._run.path, self._epoch)
        elif self._run.journal.exists():
            log.info("resuming %s from its beginning: it left no checkpoint", self._run.path)
        return state

    def finish(self, metrics: Mapping[str, float]) -> None:
        self._begin()
        self._values.update(metrics)

    def log_artifact(self, path: Path) -> None:
        self._begin()
        self._run.artifacts.mkdir(exist_ok=True)
        if path.resolve().parent != self._run.artifacts.resolve():
            shutil.copy2(path, self._run.artifacts)

    def end(self, error: BaseException | None = None) -> None:
        """Record how the trial ended: complete, or by `error`. One that was refused before it began leaves no record.

        Raises OSError for a trial that is complete; where another one ends, the disk may be what failed.
        """
        recorder = self._recorder
        if recorder is None:
            return
        if error is not None:
            self._count_time(time.perf_counter())
        with suppress(*([] if error is None else [OSError])):
            recorder.end(error, {**self._values, "time/train_s": self.train_s})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def _begin(self, dataset: Mapping[str, Any] | None = None, device: str | None = None) -> RunRecorder:
        """Begin the record, unless it has begun."""
        if self._recorder is not None:
            return self._recorder
        recorder = RunRecorder(self._run, self._member)
        self._open.callback(recorder.close)
        recorder.start(self._config, output_dir=self._output_dir, store=self._store, dataset=dataset, device=device)
        self._recorder = recorder
        if self._stops_on_signals:
            self._stop = self._open.enter_context(stop_on_signal())
        if self._member is None:
            self._show = self._open.enter_context(progress(self._config.trainer.epochs, self.epoch, self._live))
        self._since = time.perf_counter()
        return recorder

    def _load(self) -> dict[str, Any] | None:
        """Return what the checkpoint holds, if there is one; from here on its epoch is known."""
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
        if self._is_timed:
            self.train_s += now - self._since
        self._since = now
