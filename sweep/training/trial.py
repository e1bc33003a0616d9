"""The interface between a training function and the study: what the function can ask of its trial."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

OF_FUNCTION = "_sweep"  # in a checkpoint of a user's function: what is saved besides the function's own state


class Trial(Protocol):
    """One trial, as a training function sees it.

    The function reports each epoch, and the study may end the trial at a report. The function may also save its state.
    A trial that was stopped, or whose process died, resumes from the last saved state:

        state = trial.restore()
        if state is not None:
            model.load_state_dict(state["model"])
        for epoch in range(trial.epoch + 1, n_epochs + 1):
            ...
            trial.report(epoch, {"val/loss": loss})
            if trial.should_save:
                trial.save(epoch, {"model": model.state_dict()})

    Attributes:
        number: the trial's number in its study, from 0; None outside a study.
        params: the values that the study chose, by config key.
        folder: the trial's own folder. Files that you put there are kept.
    """

    @property
    def number(self) -> int | None: ...
    @property
    def params(self) -> Mapping[str, Any]: ...
    @property
    def folder(self) -> Path: ...

    @property
    def epoch(self) -> int:
        """The epoch of the last `save`, which may be from an earlier process; 0 if there is none."""
        ...

    @property
    def should_save(self) -> bool:
        """Whether a stop was requested, or the last `save` was at least `trainer.checkpoint_interval_s` seconds ago."""
        ...

    @property
    def should_stop(self) -> bool:
        """Whether a stop was requested. The function should save its state; `save` then raises Interrupted."""
        ...

    def describe(self, *, dataset: Mapping[str, Any] | None = None, device: str | None = None) -> None:
        """Describe what the trial trains on. Call it before anything is reported or logged.

        Args:
            dataset: the fields of an MLflow data set.
            device: the kind of device, such as cpu or cuda.
        """
        ...

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a finished epoch. The study's pruner may end the trial here.

        If the epoch was reported before, the first report stands.

        Args:
            epoch: from 1; not smaller than the one reported before.
            metrics: by name, such as `val/loss`.

        Raises:
            Pruned: the study gives up the trial.
            Interrupted: a stop was requested, and this is the second report since then without a `save`.
        """
        ...

    def log(self, metrics: Mapping[str, float | Sequence[float]], step: int | Sequence[int]) -> None:
        """Record further curves, which play no part in pruning.

        Args:
            metrics: by name: one value, or one for each step if `step` is a sequence.
            step: the step of the value, or the steps of the values.
        """
        ...

    def save(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint atomically. It is on the disk when this returns or raises Interrupted.

        Args:
            epoch: the last finished epoch.
            state: tensors, numbers, strings, and lists and mappings of these, as `torch.load(weights_only=True)` needs.

        Raises:
            ValueError: `state` has a key `epoch` with another value.
            Interrupted: a stop was requested. The state is saved.
            OSError: the disk is full or the file cannot be written. The previous checkpoint is kept.
        """
        ...

    def restore(self) -> dict[str, Any] | None:
        """Return the state that was saved last, on the CPU; None if there is none."""
        ...

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Give single values, such as test metrics, to be recorded when the trial ends.

        They are not recorded if the trial is only interrupted.
        """
        ...

    def log_artifact(self, path: Path) -> None:
        """Store a file as an artifact: in the trial's folder, and in MLflow.

        The files best.pt, predictions.parquet and model.yaml in the trial's folder stay where they are. MLflow's model
        is made of best.pt and model.yaml. Any other file is copied to `artifacts/` in that folder.

        Raises:
            OSError: the file cannot be copied.
        """
        ...


def refuse_other_epoch(epoch: int, state: Mapping[str, Any]) -> None:
    """Raise ValueError if a state to save has a key `epoch` with another value."""
    if state.get("epoch", epoch) != epoch:
        raise ValueError(
            f"state['epoch'] is {state['epoch']}, but the epoch is {epoch}; leave it out or make them equal"
        )


class UnrecordedTrial:
    """A trial that records nothing and is never stopped, for measuring speed and for range tests."""

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
