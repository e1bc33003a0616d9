"""Load one split of torch datasets batch by batch: with torchdata's StatefulDataLoader, or by a loop of our own."""

import copy
import multiprocessing
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from sweep.config.epochs import steps_per_epoch
from sweep.config.nodes import Loader, Trainer
from sweep.data.datasets import Datasets, is_stream, length
from sweep.training.augmented import AugmentedSamples
from sweep.training.data import Batch, LoadingFailed, loading_failure, on_device
from sweep.training.seeded_datasets import (
    Collate,
    Failure,
    Rows,
    SeededDataset,
    SeededStream,
    begin_worker,
    is_stateful,
)
from sweep.training.tensors import epoch_order
from sweep.training.torch_internals import end_workers
from sweep.utils.errors import ConfigError, one_line
from sweep.utils.seeds import derive_seed

_END = object()
_AT_ONCE = 100  # batches whose seeds and rows are made together; one by one takes more than twice as long


class _Trace(Exception):
    """The traceback of an error in a worker process, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Order:
    """Yields the rows of each batch of one pass over a map-style dataset: the `batch_sampler` of a loader.

    Attributes:
        number: of the pass, from 1.
        start: the number of its first batch, from 0.
    """

    def __init__(self, part: str, n: int, seed: int, batch_size: int, drop_last: bool) -> None:
        self.number, self.start = 1, 0
        self._part, self._n, self._seed, self._size = part, n, seed, batch_size
        self._n_batches = n // batch_size if drop_last else steps_per_epoch(n, batch_size)

    def __iter__(self) -> Iterator[Rows]:
        is_shuffled = self._part == "train"
        order = epoch_order(self._seed, self.number, self._n) if is_shuffled else torch.arange(self._n)
        for first in range(self.start, self._n_batches, _AT_ONCE):
            numbers = range(first, min(first + _AT_ONCE, self._n_batches))
            seeds = [derive_seed(self._seed, f"data/{self._part}/{self.number}/{batch}") for batch in numbers]
            rows = order[first * self._size : numbers.stop * self._size].tolist()
            for i, seed in enumerate(seeds):
                yield Rows(seed, rows[i * self._size : (i + 1) * self._size])

    def __len__(self) -> int:
        return self._n_batches


class PartLoader:
    """Loads one of the three datasets, pass by pass, onto the device.

    A map-style dataset that is read in this process needs no DataLoader: it would do what `_read_here` does, but take
    15 microseconds more for a batch (docs/decisions/0064-batches-read-here.md).

    Torch's generator of this process keeps its state, from which dropout draws. Those of Python and numpy do not, if
    batches are loaded in this process: saving and restoring numpy's would take 0.1 ms a batch.

    Attributes:
        key: that an error of the dataset names.
        is_stream: whether the position in a pass is known to the dataset only.
    """

    def __init__(self, datasets: Datasets, part: str, loader: Loader, trainer: Trainer, device: torch.device) -> None:
        dataset = _own_copy(getattr(datasets, part), part)
        self.part, self.is_stream, self._device = part, is_stream(dataset), device
        self._seed, self._dataset = trainer.seed, dataset
        self._collate = Collate(datasets.collate_fn, self.is_stream)
        is_augmented = isinstance(dataset, AugmentedSamples)
        self._label = dataset.label if is_augmented else f"Datasets.{part}"
        self.key = "data.augment" if is_augmented else "data"
        self._batch_size, self._n_workers = trainer.batch_size, loader.num_workers
        self._drops_last = drop_last = loader.drop_last and part == "train"
        settings: dict[str, Any] = {
            "num_workers": loader.num_workers,
            "collate_fn": self._collate,
            "pin_memory": loader.pin_memory and device.type != "cpu",
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
            "worker_init_fn": begin_worker,
            "multiprocessing_context": _start_method() if loader.num_workers else None,
            "generator": torch.Generator().manual_seed(0),  # or each pass would draw from the training's generator
        }
        self._loader: StatefulDataLoader[Any] | None = None
        if self.is_stream:
            self._stream = SeededStream(dataset, part, trainer.seed, trainer.batch_size, counts=part == "train")
            self._loader = _stateful_loader(
                self._stream, batch_size=trainer.batch_size, drop_last=drop_last, **settings
            )
        else:
            n = length(dataset)
            assert n is not None
            self._order = _Order(part, n, trainer.seed, trainer.batch_size, drop_last)
            self._samples = SeededDataset(dataset, self._label)
            if self._n_workers or settings["pin_memory"]:
                self._loader = _stateful_loader(
                    self._samples,
                    batch_sampler=self._order,
                    snapshot_every_n_steps=None,  # the position follows from the number of the update
                    **settings,
                )

    def example(self, size: int) -> Batch:
        """Load a batch of at most `size` samples in this process. Raises LoadingFailed."""
        seed = derive_seed(self._seed, f"data/{self.part}/0")
        if self.is_stream:
            kept = copy.deepcopy(self._dataset.state_dict()) if is_stateful(self._dataset) else None
            samples: Any = [*islice(SeededStream(self._dataset, self.part, seed, size, counts=False), size)]
            if kept is not None:
                self._dataset.load_state_dict(kept)
        else:
            n = length(self._dataset) or 0
            samples = self._samples.__getitems__(Rows(seed, [*range(min(size, n))]))
        if samples == []:
            raise LoadingFailed(f"Datasets.{self.part} has no samples")
        return on_device(_checked(self._collate(samples)), self._device)

    def begin(self, number: int = 1, start: int = 0, state: Any = None) -> Iterator[Batch]:
        """Begin a pass, or continue one of an earlier process.

        Args:
            number: of the pass, from 1.
            start: the number of the first batch, from 0.
            state: of a stream whose first batch is not 0: what `state_dict` returned before it.

        Returns:
            The batches. They raise LoadingFailed.
        """
        if self.is_stream:
            self._stream.number = number
            if state is not None:
                assert self._loader is not None
                self._loader.load_state_dict(state)
        else:
            self._order.number, self._order.start = number, start
        return self._batches(is_empty=start == 0)

    def _batches(self, is_empty: bool) -> Iterator[Batch]:
        for loaded in self._read_here() if self._loader is None else self._read(self._loader):
            is_empty = False
            batch = _checked(loaded)
            yield batch if self._device.type == "cpu" else on_device(batch, self._device)
        if is_empty:
            few = f" or fewer than a batch of {self._batch_size}, which loader.drop_last leaves out"
            raise LoadingFailed(f"Datasets.{self.part} has no samples{few if self._drops_last else ''}")

    def _read_here(self) -> Iterator[Any]:
        """Yield each batch of a map-style dataset, or the `Failure` to load it."""
        for rows in self._order:
            kept = torch.default_generator.get_state()
            loaded = self._collate(self._samples.__getitems__(rows))
            torch.default_generator.set_state(kept)
            yield loaded

    def _read(self, loader: StatefulDataLoader[Any]) -> Iterator[Any]:
        """Yield what a loader does: each batch, or the `Failure` to load it. Raise LoadingFailed if a worker dies."""
        batches = None
        while True:
            kept = torch.default_generator.get_state() if self._n_workers == 0 else None
            try:
                if batches is None:
                    batches = iter(loader)
                loaded = next(batches, _END)
            except (RuntimeError, OSError, EOFError) as error:  # the dataset's own errors come as a Failure
                if (failure := loading_failure(error, connects=self._n_workers > 0)) is None:
                    raise
                _forget_frames(error)
                raise failure from error
            if kept is not None:
                torch.default_generator.set_state(kept)
            if loaded is _END:
                return
            yield loaded

    def state_dict(self) -> Any:
        """Return the position of a stream in the pass that `begin` began."""
        assert self._loader is not None
        return self._loader.state_dict()

    def close(self) -> None:
        """End the worker processes."""
        if self._loader is not None:
            end_workers(self._loader)


def _start_method() -> str:
    """Return how worker processes are started: as this process starts others, or as Python does on this system.

    In a study's worker it is joblib's own way, which torch cannot use.
    """
    own, known = multiprocessing.get_start_method(), multiprocessing.get_all_start_methods()
    return own if own in ("fork", "spawn", "forkserver") else known[0]


def _forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error and of those behind it: torchdata's frames hold files that it opened to count."""
    behind: BaseException | None = error
    while behind is not None:
        behind.__traceback__ = None
        behind = behind.__cause__ or behind.__context__


def _own_copy(dataset: Any, part: str) -> Any:
    """Return a copy of a dataset that keeps its position itself, so that trials do not move each other's.

    Raises ConfigError if it cannot be copied.
    """
    if not (is_stream(dataset) and is_stateful(dataset)):
        return dataset
    try:
        return copy.deepcopy(dataset)
    except Exception as error:  # your own dataset may raise anything
        problem = f"Datasets.{part} has a state_dict, so each trial needs a copy, but copy.deepcopy fails"
        raise ConfigError("data", f"{problem} ({one_line(error)}); give it a method __deepcopy__") from error


def _stateful_loader(*args: Any, **settings: Any) -> StatefulDataLoader[Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'set_vital' is deprecated", UserWarning)  # torchdata 0.11 calls it
        return StatefulDataLoader(*args, **settings)


def _checked(batch: Any) -> Batch:
    """Return the batch. Raise LoadingFailed if loading it failed."""
    if isinstance(batch, Failure):
        raise LoadingFailed(batch.reason) from _Trace(batch.trace)
    return batch
