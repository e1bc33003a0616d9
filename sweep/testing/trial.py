"""A trial in memory, and the check of what every implementation of `sweep.Trial` does."""

import math
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sweep.tracking.folders import RunFolder
from sweep.tracking.run_recorder import kept_artifact
from sweep.training.trial import Trial, UnrecordedTrial, refuse_other_epoch
from sweep.utils.errors import Interrupted, Pruned

MakeTrial = Callable[..., Trial]  # of a folder, and of `prune_at` and `stop_at` as of `TrialInMemory`
Reports = Callable[[Trial], Mapping[int, Mapping[str, float]]]


class TrialInMemory(UnrecordedTrial):
    """A trial without a run or a study. It keeps what a training function reports, and can be pruned and stopped.

    It does what the trials of studies do (`check_trial`), except that `describe` does nothing.

    Attributes:
        folder: the trial's own folder.
        number: the trial's number in its study.
        reports: the reported metrics, by epoch.
        curves: what was logged: values by step, by name.
        values: the values that `finish` got, by name.
        checkpoint: the file that `save` writes.
    """

    def __init__(
        self, folder: Path, *, number: int = 0, prune_at: int | None = None, stop_at: int | None = None
    ) -> None:
        """Begin a trial, or resume one that saved its state in the same folder.

        Args:
            folder: the trial's own folder. It must exist.
            number: the trial's number in its study.
            prune_at: the report at which the trial is pruned, counted from 1; None never prunes it.
            stop_at: the report after which a stop is requested, counted from 1; None never requests one.
        """
        self.folder, self.number = folder, number
        self.reports: dict[int, dict[str, float]] = {}
        self.curves: dict[str, dict[int, float]] = {}
        self.values: dict[str, float] = {}
        self.checkpoint = folder / "checkpoint.pt"
        self._prune_at, self._stop_at = prune_at, stop_at
        self._n_reports = 0

    @property
    def epoch(self) -> int:
        """The epoch of the last checkpoint; 0 if there is none."""
        from sweep.training import checkpoint

        return checkpoint.load(self.checkpoint)["epoch"] if self.checkpoint.exists() else 0

    @property
    def should_save(self) -> bool:
        """Always True, so that every epoch is saved."""
        return True

    @property
    def should_stop(self) -> bool:
        """True once `stop_at` reports were made."""
        return self._stop_at is not None and self._n_reports >= self._stop_at

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of an epoch. If a metric was reported in it before, the first value stands.

        Args:
            epoch: a whole number that does not fall.
            metrics: finite numbers, by name.

        Raises:
            Pruned: this is report number `prune_at`.
            Interrupted: a stop was requested before this report, and the state was not saved since.
            AssertionError: the epoch or a metric breaks the rules above.
        """
        must_stop, before = self.should_stop, max(self.reports, default=0)
        assert isinstance(epoch, int), f"an epoch is a whole number, not {epoch!r}"
        assert epoch >= before, f"epoch {epoch} is reported after epoch {before}"
        for name, value in metrics.items():
            assert math.isfinite(float(value)), f"{name} is {value} in epoch {epoch}; raise Diverged instead"
        numbers = {name: float(value) for name, value in metrics.items()}
        self.reports[epoch] = numbers | self.reports.get(epoch, {})
        self._n_reports += 1
        if self._n_reports == self._prune_at:
            raise Pruned(epoch)
        if must_stop:
            raise Interrupted(signal.SIGTERM)

    def log(self, metrics: Mapping[str, float | Sequence[float]], step: int | Sequence[int]) -> None:
        """Keep points of further curves. If a step was logged before, the first value stands."""
        steps = step if isinstance(step, Sequence) else [step]
        for name, values in metrics.items():
            column = values if isinstance(values, Sequence) else [values]
            self.curves[name] = dict(zip(steps, column, strict=True)) | self.curves.get(name, {})

    def save(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint. Raise Interrupted afterwards if a stop was requested.

        Args:
            epoch: the last finished epoch.
            state: tensors, numbers, texts, and lists and mappings of them.

        Raises:
            ValueError: `state` has a key `epoch` with another value.
        """
        from sweep.training import checkpoint

        refuse_other_epoch(epoch, state)
        last = max(self.reports, default=-1)
        checkpoint.save(self.checkpoint, checkpoint.with_random_states({**state, "epoch": epoch}, last))
        if self.should_stop:
            raise Interrupted(signal.SIGTERM)

    def restore(self) -> dict[str, Any] | None:
        """Return the state of the checkpoint, and restore the random generators; None if there is none."""
        from sweep.training import checkpoint

        if not self.checkpoint.exists():
            return None
        return checkpoint.restored_random_states(checkpoint.load(self.checkpoint))

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Keep single values, by name."""
        self.values.update(metrics)

    def log_artifact(self, path: Path) -> None:
        """Keep a file in the trial's folder, as `Trial.log_artifact` says."""
        kept_artifact(RunFolder(self.folder), path)


def check_trial(make: MakeTrial, reports: Reports, folder: Path) -> None:
    """Check that an implementation of `sweep.Trial` does what training functions rely on.

    Args:
        make: called with a folder, begins a trial there, or resumes the one that has saved its state there. It also
            takes `prune_at=n`, to prune the trial at its n-th report, and `stop_at=n`, to request a stop of the trial
            at its n-th report.
        reports: returns what a trial has recorded: the metrics by epoch.
        folder: an empty folder. It gets a folder for each trial.

    Raises:
        AssertionError: the message says what the implementation does not do.
    """

    def trial(name: str, **more: int) -> Trial:
        (folder / name).mkdir(parents=True, exist_ok=True)
        return make(folder / name, **more)

    _check_record(trial("new"), reports)
    _check_checkpoint(lambda: trial("saved"))
    _check_stop(trial, reports)
    _check_artifacts(trial("artifacts"), folder)
    pruned = trial("pruned", prune_at=2)
    pruned.report(1, {"val/loss": 1.0})
    _assert_raises(Pruned, lambda: pruned.report(2, {"val/loss": 2.0}), "the study prunes at the second report")
    assert len(reports(pruned)) == 2, "what is reported is recorded before the study is asked"


def _check_record(new: Trial, reports: Reports) -> None:
    assert new.folder.is_dir(), "a trial has a folder of its own"
    assert (new.epoch, new.restore()) == (0, None), "a new trial has nothing to restore, and its epoch is 0"
    assert not new.should_stop, "nobody has requested a stop"
    new.describe(device="cpu")
    new.log({"step/loss": [1.0, 0.5], "step/lr": [0.1, 0.2]}, range(1, 3))
    new.log({"step/loss": 0.25}, 3)
    new.report(1, {"val/loss": 1.0})
    new.report(1, {"val/loss": 9.0})
    new.report(3, {"val/loss": 0.5, "val/mae": 0.25})
    new.finish({"test/loss": 0.5})
    assert dict(reports(new)) == {1: {"val/loss": 1.0}, 3: {"val/loss": 0.5, "val/mae": 0.25}}, (
        "each epoch is recorded once, and the first report of an epoch stands"
    )


def _check_checkpoint(make: Callable[[], Trial]) -> None:
    import torch

    first = make()
    first.report(1, {"val/loss": 1.0})
    first.save(1, {"weight": torch.arange(3.0), "names": ["a"]})
    assert first.epoch == 1, "the epoch is that of the last checkpoint"
    _assert_raises(ValueError, lambda: first.save(2, {"epoch": 7}), "the state has another epoch")
    resumed = make()
    assert resumed.epoch == 1, "a resumed trial begins after its checkpoint"
    for _ in range(2):
        state = resumed.restore()
        assert state is not None, "the state may be restored any number of times"
        assert (state["weight"].tolist(), state["names"]) == ([0.0, 1.0, 2.0], ["a"]), "the state is another one"


def _check_stop(make: MakeTrial, reports: Reports) -> None:
    stopped = make("stopped", stop_at=1)
    stopped.report(1, {"val/loss": 1.0})
    assert stopped.should_stop, "a stop was requested"
    assert stopped.should_save, "a stop was requested, and a trial saves its state before it stops"
    _assert_raises(Interrupted, lambda: stopped.save(1, {"x": 2}), "`save` stops the trial")
    assert (make("stopped").restore() or {}).get("x") == 2, "`save` stops the trial once the state is on the disk"
    unsaved = make("unsaved", stop_at=1)
    unsaved.report(1, {"val/loss": 1.0})
    second = partial(unsaved.report, 2, {"val/loss": 0.5})
    _assert_raises(Interrupted, second, "a trial that never saves stops at its second report")
    assert len(reports(unsaved)) == 2, "the report that stops the trial is recorded"


def _check_artifacts(trial: Trial, folder: Path) -> None:
    for file in (folder / "table.csv", trial.folder / "best.pt"):
        file.write_text("content")
        trial.log_artifact(file)
    assert (trial.folder / "artifacts" / "table.csv").exists(), "a file from elsewhere is copied to artifacts/"
    assert not (trial.folder / "artifacts" / "best.pt").exists(), "best.pt stays where it is"


def _assert_raises(kind: type[BaseException], call: Callable[[], object], why: str) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} is not raised: {why}")
