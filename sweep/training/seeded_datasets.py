"""Torch datasets whose random draws depend on the trial's seed. This is the part of loading that runs in workers.

The global generators of torch, Python and numpy are seeded before each batch, by the number of the pass over the
dataset and that of the batch. So what a dataset draws does not depend on whether the run was resumed. If it is
map-style, it does not depend on the number of worker processes either (docs/decisions/0041-datasets-and-loaders.md).
"""

import random
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from sweep.utils.errors import one_line
from sweep.utils.parent import end_with_parent
from sweep.utils.seeds import derive_seed
from sweep.utils.signals import stopping_signals


class Rows(NamedTuple):
    """A batch to load: its samples, and the seed of what is drawn for it."""

    seed: int
    indices: list[int]


@dataclass(frozen=True)
class Failure:
    """An error of a dataset or of `collate_fn`. It travels in place of a batch, so that a worker can send it."""

    reason: str
    trace: str

    @classmethod
    def of(cls, where: str, error: Exception) -> "Failure":
        """Describe an error that is being handled. `where` says what raised it."""
        return cls(f"{where}: {type(error).__name__}: {one_line(error)}", traceback.format_exc())


class SeededDataset:
    """A map-style dataset that is asked for whole batches."""

    def __init__(self, dataset: Any, label: str) -> None:
        """Wrap the dataset. label: what a message about a sample names, such as Datasets.train."""
        self._dataset, self._label = dataset, label

    def __getitems__(self, rows: Rows) -> list[Any] | Failure:
        """Return the samples of a batch. Torch's DataLoader calls this if a dataset has it."""
        seed_generators_of_data(rows.seed)
        dataset, index, samples = self._dataset, None, []
        try:
            fetch: Callable[[list[int]], list[Any]] | None = getattr(dataset, "__getitems__", None)
            if fetch is not None:
                return fetch(rows.indices)
            for index in rows.indices:
                samples.append(dataset[index])
            return samples
        except Exception as error:  # your own dataset may raise anything
            return Failure.of(self._label + ("" if index is None else f"[{index}]"), error)


class SeededStream(IterableDataset):
    """An iterable dataset, read from its beginning in each pass.

    Attributes:
        number: of the next pass, from 1. A worker process that is kept from pass to pass counts by itself.
    """

    def __init__(self, dataset: Any, part: str, seed: int, batch_size: int, counts: bool) -> None:
        """Wrap the dataset.

        Args:
            dataset: the stream.
            part: train, val or test.
            seed: of the trial.
            batch_size: samples in a batch.
            counts: whether the draws differ from pass to pass.
        """
        self.dataset, self.part, self.seed, self.batch_size, self.counts = dataset, part, seed, batch_size, counts
        self.number = 1

    def __iter__(self) -> Iterator[Any]:
        """Begin a pass."""
        number = self.number
        self.number += self.counts
        return StreamPass(self, number)


class StreamPass(Iterator[Any]):
    """One pass over a stream, or over a worker's share of it. torchdata saves and restores its position.

    A stream with `state_dict` and `load_state_dict`, or whose iterator has them, is restored by these. Any other is
    read again up to the position.
    """

    def __init__(self, stream: SeededStream, number: int) -> None:
        self._stream = stream
        worker = get_worker_info()
        self._seeds = f"{stream.part}/{number}/{0 if worker is None else worker.id}"
        self._n, self._n_to_skip, self._has_ended = 0, 0, False
        self._source: Iterator[Any] | None = None
        self._of_source: Any = None  # the state of an iterator that is not open yet
        self._failure: Failure | None = None

    def __next__(self) -> Any:
        """Return the next sample, or the `Failure` to get it. Raise StopIteration at the end."""
        if self._failure is not None:
            return self._failure
        if self._has_ended:
            raise StopIteration
        try:
            if self._source is None:
                self._open()
            return self._read()
        except StopIteration:
            self._has_ended = True
            raise
        except Exception as error:  # your own dataset may raise anything
            return Failure.of(f"Datasets.{self._stream.part}", error)

    def _open(self) -> None:
        self._seed()
        self._source = iter(self._stream.dataset)
        if self._of_source is not None:
            self._source.load_state_dict(self._of_source)  # pyright: ignore[reportAttributeAccessIssue]
        for _ in range(self._n_to_skip):
            self._read()

    def _read(self) -> Any:
        assert self._source is not None
        if self._n % self._stream.batch_size == 0:
            self._seed()
        sample = next(self._source)
        self._n += 1
        return sample

    def _seed(self) -> None:
        batch = self._n // self._stream.batch_size
        seed_generators_of_data(derive_seed(self._stream.seed, f"data/{self._seeds}/{batch}"))

    def state_dict(self) -> dict[str, Any]:
        """Return the position in this pass."""
        dataset, source = self._stream.dataset, self._source
        of_dataset = dataset.state_dict() if source is not dataset and is_stateful(dataset) else None
        of_source = self._of_source if source is None else None
        if source is not None and is_stateful(source):
            of_source = source.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
        n = self._n_to_skip if source is None and self._n_to_skip else self._n
        return {"n": n, "ended": self._has_ended, "dataset": of_dataset, "iterator": of_source}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to that position. The samples before it are skipped with the next sample that is asked for."""
        self._has_ended, self._of_source = state["ended"], state["iterator"]
        try:
            if state["dataset"] is not None:
                self._stream.dataset.load_state_dict(state["dataset"])
        except Exception as error:  # your own dataset may raise anything
            self._failure = Failure.of(f"Datasets.{self._stream.part}", error)
        if state["dataset"] is None and state["iterator"] is None:
            self._n_to_skip = state["n"]
        else:
            self._n = state["n"]


class Collate:
    """Makes batches of samples. Passes on a `Failure` in place of a batch."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any] | None, of_stream: bool) -> None:
        """Wrap the function; None is torch's `default_collate`. A stream's failure comes in place of a sample."""
        self._own, self._of_stream = collate_fn, of_stream

    def __call__(self, samples: list[Any] | Failure) -> Any:
        """Return the batch."""
        if isinstance(samples, Failure):
            return samples
        if self._of_stream and (failure := next((s for s in samples if isinstance(s, Failure)), None)) is not None:
            return failure
        try:
            return (self._own or default_collate)(samples)
        except Exception as error:  # your own function may raise anything
            return Failure.of("Datasets.collate_fn" if self._own else "the batch of these samples", error)


def seed_generators_of_data(seed: int) -> None:
    """Seed the global generators of torch (on the CPU), Python and numpy. With 32 bits, Python takes half as long."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed & 0xFFFFFFFF)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002  # your own code may draw from it


def begin_worker(worker_id: int) -> None:
    """Make a worker process ignore the signals that stop a run, and end with the process that started it.

    A terminal or a batch system sends the signals to all processes. The training still needs its workers then, to
    finish an update and to save. It ends them itself.
    """
    del worker_id
    for signum in stopping_signals():
        signal.signal(signum, signal.SIG_IGN)
    end_with_parent()


def is_stateful(thing: Any) -> bool:
    """Return whether a dataset, or its iterator, saves its position itself."""
    return all(callable(getattr(thing, name, None)) for name in ("state_dict", "load_state_dict"))
