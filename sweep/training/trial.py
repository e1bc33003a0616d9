"""The contract between what trains and what searches and records: what a training function sees of its trial."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Trial(Protocol):
    """One trial, as a training function sees it: all that it may ask for, and all that it may say.

    The function reports each epoch, and whoever searches may end the trial there. Where it saves its state, a trial
    that was stopped, or whose process died, goes on from there:

        state = trial.restore()
        if state is not None:
            model.load_state_dict(state["model"])
        for epoch in range(trial.epoch + 1, n_epochs + 1):
            ...
            trial.report(epoch, {"val/loss": loss})
            if trial.should_save:
                trial.save(epoch, {"model": model.state_dict()})

    number: of the trial in its study, from 0; None outside a study. params: what the study sampled, by config key.
    folder: the trial's own; what is put there stays with it.
    """

    @property
    def number(self) -> int | None: ...
    @property
    def params(self) -> Mapping[str, Any]: ...
    @property
    def folder(self) -> Path: ...

    @property
    def epoch(self) -> int:
        """The epoch of the last `save`, in an earlier process too; 0 where there is none."""
        ...

    @property
    def should_save(self) -> bool:
        """Whether the last `save` was at least `trainer.checkpoint_interval_s` seconds ago, or a stop was asked for."""
        ...

    @property
    def should_stop(self) -> bool:
        """Whether the trial was asked to save its state and stop."""
        ...

    def describe(self, *, dataset: Mapping[str, Any] | None = None, device: str | None = None) -> None:
        """Say what the trial trains on, before anything else is said of it.

        Args:
            dataset: as MLflow's data sets have it.
            device: the kind of device, such as cpu or cuda.
        """
        ...

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a finished epoch, and let whoever searches judge them.

        An epoch that was reported before is not recorded again: the first report stands.

        Args:
            epoch: from 1, and larger than the one before.
            metrics: by name, as in `val/loss`.

        Raises:
            Pruned: the trial is not worth going on with.
            Interrupted: a stop was asked for, and the epoch before was reported since, but not saved.
        """
        ...

    def log(self, metrics: Mapping[str, float | Sequence[float]], step: int | Sequence[int]) -> None:
        """Record further curves, which nobody judges: a value each at `step`, or one for each of several steps."""
        ...

    def save(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, whole or not at all.

        Args:
            epoch: the last that is finished.
            state: tensors, numbers, texts, and lists and mappings of them, as `torch.load(weights_only=True)` takes.

        Raises:
            Interrupted: a stop was asked for; the state is saved.
            OSError: there is no room.
        """
        ...

    def restore(self) -> dict[str, Any] | None:
        """Return the state that was saved last, on the CPU; None where there is none."""
        ...

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Have single values, such as a test's, recorded when the trial ends, unless it is only stopped for now."""
        ...

    def log_artifact(self, path: Path) -> None:
        """Have MLflow keep a copy of a file, from `artifacts/` in the trial's folder."""
        ...


class UnrecordedTrial:
    """A trial that leaves nothing behind, for tests of speed and of learning rates: no file, no report, no stop."""

    number: int | None = None
    params: Mapping[str, Any] = {}
    folder = Path()
    epoch = 0
    should_save = False
    should_stop = False

    def describe(self, *, dataset: Mapping[str, Any] | None = None, device: str | None = None) -> None: ...
    def report(self, epoch: int, metrics: Mapping[str, float]) -> None: ...
    def log(self, metrics: Mapping[str, float | Sequence[float]], step: int | Sequence[int]) -> None: ...
    def save(self, epoch: int, state: Mapping[str, Any]) -> None: ...
    def restore(self) -> dict[str, Any] | None:
        return None

    def finish(self, metrics: Mapping[str, float]) -> None: ...
    def log_artifact(self, path: Path) -> None: ...
