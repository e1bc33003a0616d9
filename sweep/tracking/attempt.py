"""One attempt at a trial, from the start of its record to the end."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sweep.config.schema import Config
from sweep.tracking import journal as journals
from sweep.tracking.chunks import forget_offsets, most_sent
from sweep.tracking.ending import write_end
from sweep.tracking.folders import Busy, RunFolder, StudyFolder
from sweep.tracking.journal import Journal
from sweep.tracking.recorder import Recorder, Report
from sweep.tracking.start import Membership, write_start
from sweep.utils.errors import BeingTrained, ConfigError, Damaged, DamagedJournal

if TYPE_CHECKING:
    from sweep.training.state import TrainState


class Attempt:
    """One attempt at a trial, as its folder records it: begun when it is made, over with `complete` or `end`."""

    def __init__(
        self,
        run: RunFolder,
        config: Config,
        data: Mapping[str, Any],
        output_dir: Path,
        store: str | None,
        course: "TrainState",
        device: str,
        member: Membership | None,
        report: Report | None,
    ) -> None:
        """data: as `dataset` has it. store: as `recorded_uri` has it. device: the kind that it trains on."""
        self._run, self._course, self._member = run, course, member
        is_shorter = journals.whole_size(run.journal) < most_sent(run)
        self._journal = Journal(run.journal)
        if is_shorter:  # it lost its end, and nothing that the checkpoint has
            forget_offsets(run)
        try:
            write_start(self._journal, run, config, data, output_dir, store, device, member)
        except BaseException:
            self._journal.close()
            raise
        n_steps = course.n_updates * config.trainer.epochs
        self.recorder = Recorder(self._journal, n_steps, config.tracking.step_points, report)

    def save(self, state: dict[str, Any]) -> None:
        """Writes a checkpoint."""
        from sweep.training import checkpoint

        self._journal.sync()  # a checkpoint must not know of epochs that the journal lacks
        checkpoint.save(self._run.checkpoint, state)

    def complete(self, test: dict[str, float], n_weights: int, train_s: float) -> None:
        """The trial is trained, and its best weights come to `test`."""
        from sweep.training import checkpoint

        best = self._course.best
        assert best is not None
        monitor = self._course.trainer.monitored
        found = {"model": best.weights, "epoch": best.epoch, "value": best.value, "monitor": monitor}
        checkpoint.save(self._run.best, found)
        values = {**self._reached(train_s), "model/n_weights": n_weights, **test}
        write_end(self._journal, self._run, None, self._member, values)

    def end(self, error: BaseException, train_s: float) -> None:
        """The trial is ended by `error`. Raises nothing: the disk may be what failed."""
        with suppress(OSError):
            write_end(self._journal, self._run, error, self._member, self._reached(train_s))

    def close(self) -> None:
        with suppress(OSError):
            self._journal.sync()
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _reached(self, train_s: float) -> dict[str, float]:
        best, monitor = self._course.best, self._course.trainer.monitored.replace("/", "_")
        reached = {} if best is None else {"best/epoch": best.epoch, f"best/{monitor}": best.value}
        return {**reached, "time/train_s": train_s}


@contextmanager
def locked(run: RunFolder) -> Iterator[None]:
    """The folder, made where there is none, for this process alone. Raises BeingTrained, or OSError."""
    run.create()
    with ExitStack() as stack:
        try:
            stack.enter_context(run.lock())
        except Busy:
            raise BeingTrained("resume", f"'{run.path}' is being trained by another process") from None
        yield


def saved_state(run: RunFolder) -> dict[str, Any] | None:
    """The state in the run's checkpoint, if it has one. Raises Damaged, or ConfigError.

    A journal that has fewer epochs than the checkpoint is damaged.
    """
    from sweep.training import checkpoint

    if not run.checkpoint.exists():
        return None
    state = checkpoint.load(run.checkpoint)
    if _lacks_epochs(run, state):
        raise Damaged("resume", run.journal, "it lacks epochs that the checkpoint has", "start a new run")
    return state


def require_not_ended(run: RunFolder) -> None:
    """Raises DamagedJournal if a record without an end has lost it, as other files of the run or the study show."""
    remedy = "put back a copy of it, or go on with the run"
    is_over = run.best.exists() or (
        StudyFolder(run.path).results.exists() and journals.first(run.journal, "end") is None
    )
    if is_over:
        raise DamagedJournal(run.journal, None, "it has no end, though the run came to one", remedy)
    state: dict[str, Any] = {"epoch": 0}
    if run.checkpoint.exists():
        from sweep.training import checkpoint

        with suppress(ConfigError):  # the checkpoint is none of the record
            state = checkpoint.load(run.checkpoint)
    if _lacks_epochs(run, state):
        raise DamagedJournal(run.journal, None, "it lacks epochs that the checkpoint has")


def _lacks_epochs(run: RunFolder, state: Mapping[str, Any]) -> bool:
    """Whether the record is shorter than the checkpoint, which is always the younger one."""
    recorded = journals.curves(run.journal).get("val/loss")
    return state["epoch"] > (0 if recorded is None else len(recorded.steps))
