"""Torch datasets as the data of a trial, loaded batch by batch with torchdata's StatefulDataLoader."""

import functools
import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch import Tensor

from sweep.config.epochs import UNLIMITED, epoch_size, steps_per_epoch
from sweep.config.nodes import Loader, Trainer
from sweep.data.datasets import Datasets
from sweep.tasks import TensorTask
from sweep.tasks.split_values import SplitValues
from sweep.training.checkpoint import random_states, set_random_states
from sweep.training.checks import DrawnMetrics, refusal_of_metric
from sweep.training.data import Batch, Forward, LoadingFailed, See, is_pair
from sweep.training.part_loader import PartLoader
from sweep.training.readable_targets import readable_targets
from sweep.training.tensors import in_single_precision
from sweep.utils.errors import ConfigError

log = logging.getLogger("sweep")

_FIRST_PRIORITY = 100  # multiprocessing ends daemonic processes after all finalizers that have a priority


class LoadedSplit:
    """A split that is loaded batch by batch: `Split`."""

    def __init__(self, loader: PartLoader, known_targets: Tensor | None = None) -> None:
        """Make the split. known_targets: as for `Split`."""
        self._loader, self.known_targets = loader, known_targets
        self._is_checked = known_targets is not None  # by `check_metrics`

    def batches(self) -> Iterator[Batch]:
        """As for `Split`."""
        return self._loader.begin()

    def values(self, forward: Forward, task: TensorTask, see: See | None = None) -> dict[str, Tensor]:
        """As for `Split`.

        Raises ConfigError, after the first pass over `val`, if its targets do not allow a metric. On `test` such a
        metric is left out, since the model is trained by then.
        """
        values, drawn = SplitValues(task), None if self._is_checked else DrawnMetrics(task)
        for x, y in self.batches():
            outputs = in_single_precision(forward(x))
            if see is not None:
                see(x, outputs, y)
            values.add(outputs, y)
            if drawn is not None:
                drawn.add(y)
        if drawn is not None:
            problems = {name: refusal_of_metric(name, self._loader.part, why) for name, why in drawn.problems().items()}
            for error in problems.values():
                if self._loader.part == "val":
                    raise error
                _warn_once(f"warning: {error}; it is left out")
            values.leave_out(problems)
            self._is_checked = not problems
        return values.computed()


class LoaderData:
    """Torch datasets, as the data of one trial: `TrainingData`.

    A map-style dataset is trained on in the order that arrays have, a new one in each epoch. A stream is read to its
    end, then again from its beginning, whether or not an epoch ends there.
    """

    def __init__(self, datasets: Datasets, loader: Loader, trainer: Trainer, device: torch.device) -> None:
        """Prepare to load. No worker process is started yet.

        Raises:
            ConfigError: `trainer.max_steps` is needed and not set.
        """
        n = datasets.size("train")
        self.device, self.n_train = device, epoch_size(UNLIMITED if n is None else n, trainer, loader)
        self._n_updates = steps_per_epoch(self.n_train, trainer.update_size)
        loaders = {
            part: PartLoader(datasets, part, loader, trainer, device)
            for part in ("train", "val", "test")
            if getattr(datasets, part) is not None
        }
        self._train, self._loaders = loaders["train"], list(loaders.values())
        self.val = LoadedSplit(loaders["val"], readable_targets(datasets, "val"))
        self.test = LoadedSplit(loaders["test"], readable_targets(datasets, "test")) if "test" in loaders else None
        self._step = 0  # the last update whose batches were handed out
        self._pass: Iterator[Batch] | None = None
        self._n_passes, self._n_batches = 0, 0  # passes begun, and batches of the one in progress; of a stream
        self._state: Any = None  # of the stream, to continue from
        # Workers ignore SIGTERM, by which multiprocessing would end them when this process exits.
        self._at_exit = Finalize(None, self.close, exitpriority=_FIRST_PRIORITY) if loader.num_workers else None

    def example(self, size: int) -> Batch:
        """As for `TrainingData`. Raises ConfigError if it cannot be loaded."""
        try:
            return self._train.example(size)
        except LoadingFailed as error:
            raise ConfigError(self._train.key, str(error)) from error

    def updates(self, trainer: Trainer, step: int) -> Iterator[list[Batch]]:
        """As for `TrainingData`. The pass in progress goes on with the next call."""
        if step != self._step:
            self._step, self._pass = step, None
        while True:
            if self._pass is None:
                self._pass = self._begin(trainer)
            of_update = [*islice(self._pass, trainer.accumulate)]
            self._n_batches += len(of_update)
            self._step += bool(of_update)
            if not of_update or (not self._train.is_stream and self._step % self._n_updates == 0):
                for _ in self._pass:  # nothing is left; this ends the workers before those of the validation start
                    pass
                self._pass = None
            if of_update:
                yield of_update

    def update_weights(self, trainer: Trainer, step: int, n: int) -> None:
        """Return nothing: a task of your own weights the samples of a torch dataset."""

    def _begin(self, trainer: Trainer) -> Iterator[Batch]:
        if not self._train.is_stream:
            n_passes, n_done = divmod(self._step, self._n_updates)
            return self._train.begin(n_passes + 1, n_done * trainer.accumulate)
        state, self._state = self._state, None
        if state is None:
            self._n_passes, self._n_batches = self._n_passes + 1, 0
        return self._train.begin(self._n_passes, self._n_batches, state)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the position in a stream; None for a map-style dataset, where it follows from the update's number."""
        if not self._train.is_stream:
            return None
        state = self._state if self._pass is None else self._train.state_dict()
        return {"n_passes": self._n_passes, "n_batches": self._n_batches, "state": state}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """As for `TrainingData`."""
        if state is not None:
            self._n_passes, self._n_batches, self._state = state["n_passes"], state["n_batches"], state["state"]

    def close(self) -> None:
        """End the worker processes. The data cannot be used afterwards."""
        self._pass = None
        for loader in self._loaders:
            loader.close()
        if self._at_exit is not None:
            self._at_exit.cancel()


def inspected(datasets: Datasets) -> tuple[Datasets, Batch]:
    """Load two training samples, to see what the datasets do not say: `in_shape`, `in_dtype` and `out_features`.

    The global random generators keep their states.

    Returns:
        The datasets with these, as far as a batch shows them, and the batch.

    Raises:
        ConfigError: a sample cannot be loaded, or the targets do not fit the task.
    """
    states = random_states()
    try:
        batch = PartLoader(datasets, "train", Loader(), Trainer(), torch.device("cpu")).example(2)
    except LoadingFailed as error:
        raise ConfigError("data", str(error)) from error
    finally:
        set_random_states(states)
    if not is_pair(batch):
        return datasets, batch
    inputs, targets = batch
    n_outputs = datasets.out_features
    if datasets.task == "regression":
        if targets.ndim != 2:
            problem = f"gives targets of shape {tuple(targets.shape)} for a batch of {len(targets)}"
            raise ConfigError("data", f"Datasets.train {problem}; regression needs (B, n_targets)")
        n_outputs = targets.shape[1]
    shape, dtype = datasets.in_shape or tuple(inputs.shape[1:]), datasets.in_dtype or str(inputs.dtype).split(".")[-1]
    return replace(datasets, in_shape=shape, in_dtype=dtype, out_features=n_outputs), batch


@functools.cache
def _warn_once(line: str) -> None:
    """Warn, but not again in the same process: a study's trials would all say the same."""
    log.warning("%s", line)
