"""What the training loop needs of its data, whether they are arrays on the device or loaded batch by batch."""

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor

from sweep.tasks import TensorTask
from sweep.training.torch_internals import leaves, mapped, named_leaves
from sweep.utils.errors import one_line

if TYPE_CHECKING:
    from sweep.config.nodes import Trainer

Batch: TypeAlias = Any  # any structure of tensors; of a TensorTask a pair of inputs and targets
Forward: TypeAlias = Callable[[Tensor], Tensor]
See: TypeAlias = Callable[[Tensor, Tensor, Tensor], None]  # of inputs, a model's outputs and targets
_DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (exited unexpectedly|is killed by signal: [\w ]+)")


class LoadingFailed(Exception):
    """A batch cannot be loaded. The message says why, in one line."""


class Split(Protocol):
    """The samples that a model is evaluated on, always in the same order.

    Attributes:
        known_targets: all targets, if they are known before a sample is loaded.
    """

    @property
    def known_targets(self) -> Tensor | None: ...

    def batches(self) -> Iterator[Batch]:
        """Return all batches, on the device."""
        ...

    def values(self, forward: Forward, task: TensorTask, see: See | None = None) -> dict[str, Tensor]:
        """Compute the loss and the metrics of a task, of shape () each, over the whole split.

        Args:
            forward: computes the outputs.
            task: the loss and the metrics.
            see: called with each batch, in order, and its outputs in float32 or float64.
        """
        ...


class TrainingData(Protocol):
    """The data of one trial.

    Attributes:
        device: of the batches.
        n_train: the number of samples that an epoch trains on.
        val: the validation split.
        test: the test split; None if there is none.
    """

    @property
    def device(self) -> torch.device: ...
    @property
    def n_train(self) -> int: ...
    @property
    def val(self) -> Split: ...
    @property
    def test(self) -> Split | None: ...

    def example(self, size: int) -> Batch:
        """Return a batch of training samples, at most `size`, to see what batches are like."""
        ...

    def updates(self, trainer: "Trainer", step: int) -> Iterator[list[Batch]]:
        """Yield the batches of each update after the update `step`, epoch after epoch without end.

        `trainer` says in which order, and how many batches make an update.
        """
        ...

    def update_weights(self, trainer: "Trainer", step: int, n: int) -> list[float] | None:
        """Return the sum of the samples' weights in each of the `n` updates after the update `step`.

        None if all samples count the same.
        """
        ...

    def state_dict(self) -> Any:
        """Return what a checkpoint needs to continue, beside the number of the last update."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Continue from what `state_dict` returned. Call it before the first update."""
        ...


def known_targets(data: TrainingData) -> dict[str, Tensor]:
    """Return the targets of `val` and `test` that are known before a sample is loaded, by the name of the split."""
    splits: dict[str, Split | None] = {"val": data.val, "test": data.test}
    known = {part: split.known_targets for part, split in splits.items() if split is not None}
    return {part: targets.to(data.device) for part, targets in known.items() if targets is not None}


def is_pair(batch: Batch) -> bool:
    """Return whether a batch is inputs and targets, both tensors with an entry for each sample."""
    is_two = isinstance(batch, tuple | list) and len(batch) == 2
    return is_two and all(isinstance(part, Tensor) and part.ndim > 0 for part in batch)


def n_samples(batch: Batch) -> int:
    """Return the number of samples in a batch: the length of its first tensor, or of the batch; 1 if it has none."""
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(first, Tensor):
        first = next((leaf for leaf in leaves(batch) if isinstance(leaf, Tensor)), batch)
    try:
        return len(first)
    except TypeError:
        return 1


def shares(of_update: list[Batch], may_weigh: bool) -> list[Any]:
    """Return how much each batch of an update counts: its share of the samples, or of their weights.

    Args:
        of_update: the batches.
        may_weigh: whether a third part of a batch is the weights of its samples.
    """
    if may_weigh and len(of_update[0]) > 2:
        sums = torch.stack([weights.sum() for _, _, weights in of_update])
        return [*(sums / torch.where(sums.sum() > 0, sums.sum(), 1.0))]
    sizes = [n_samples(batch) for batch in of_update]
    return [size / sum(sizes) for size in sizes]


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with everything in it that has a method `to` on the device."""

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to(device, non_blocking=True)
        return leaf.to(device) if callable(getattr(leaf, "to", None)) else leaf

    return mapped(moved, batch)


def describe(batch: Batch) -> str:
    """Return in words what a batch is like, such as "a batch of shape (64, 1)" or "a batch with x (64, 1), y (64,)"."""
    if is_pair(batch):
        return f"a batch of shape {tuple(batch[0].shape)}"
    found = named_leaves(batch)
    if len(found) == 1 and not found[0][0]:
        leaf = found[0][1]
        return f"a batch of shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
    shown = [f"{name} {tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__}" for name, leaf in found]
    return f"a batch with {', '.join(shown)}" if shown else f"an empty {type(batch).__name__}"


def loading_failure(error: BaseException, connects: bool = False) -> LoadingFailed | None:
    """Return the failure that torch's error means; None if it is no error of a worker process.

    Torch also raises it from a signal handler, wherever this process is when a worker dies.

    Args:
        error: what was raised.
        connects: True if it was raised by reading from a worker. Then a broken connection is a worker's death too.
    """
    found = _DIED.search(str(error)) if isinstance(error, RuntimeError) else None
    if found is not None:
        how = f"process {found[1]}, {found[2].replace('is killed', 'killed')}"
    elif connects and isinstance(error, ConnectionError | EOFError):
        how = f"its connection broke, {type(error).__name__}"
    elif connects and isinstance(error, OSError):
        return LoadingFailed(f"cannot load data in worker processes ({one_line(error)}); lower loader.num_workers")
    else:
        return None
    advice = "if memory ran out, lower loader.num_workers, where 0 loads in the process that trains"
    return LoadingFailed(f"a worker process that loads data died ({how}); {advice}")
