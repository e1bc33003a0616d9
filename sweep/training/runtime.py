"""Process-wide settings for training: they are set for a trial and restored afterwards."""

import copy
import ctypes
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from greenlet import greenlet
from torch import Tensor, nn

from sweep.tasks import Task, TensorTask
from sweep.tasks.weighting import check_weighting
from sweep.training.checkpoint import random_states, set_random_states
from sweep.training.data import Batch, describe, is_pair
from sweep.utils.errors import ConfigError, one_line
from sweep.utils.seeds import derive_seed

T = TypeVar("T")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 512 * 2**20
_LARGEST_KEPT_BYTES = 32 * 2**20  # as much as glibc allows
_FLOPS_WORTH_THREADS = 10_000_000
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_flops_known: dict[
    tuple[str, tuple[int, ...]], int
] = {}  # by model and batch; counting takes 8 ms, and a study counts for each trial


def pick_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is the GPU if there is one. Raises ConfigError if it cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()  # fails on `meta`, which has no memory
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            "trainer.device", f"'{name}' cannot be used here ({one_line(error)}); try auto or cpu"
        ) from error
    return device


@torch.no_grad()
def check_model(model: nn.Module, batch: Batch, task: TensorTask | Task, is_weighted: bool = False) -> None:
    """Run the model on one batch, which also gives lazy layers their shapes, and compute the loss.

    Args:
        model: its weights stay as they are.
        batch: of training samples.
        task: says which shape the outputs must have, if it is a `TensorTask`.
        is_weighted: whether the samples have weights.

    Raises:
        ConfigError: the model or the loss fails, or returns something of another shape; or a `TensorTask` gets other
            batches than inputs and targets; or the samples have weights, which the loss cannot take.
    """
    model.eval()
    if not isinstance(task, TensorTask):
        if is_weighted:
            problem = f"the task {type(task).__name__} is no sweep.tasks.TensorTask, so it cannot weight samples"
            raise ConfigError("data.weight", f"{problem}; leave it out")
        _check_loss(lambda: task.loss(model, batch), describe(batch))
        return
    if not is_pair(batch):
        problem = f"gives {describe(batch)}, and the task {type(task).__name__} takes pairs of inputs and targets"
        raise ConfigError("data", f"{problem}; write a task of your own (docs/tasks.md)")
    x, y = batch
    try:
        outputs = model(x)
    except Exception as error:  # your own model may raise anything
        raise ConfigError("model", f"cannot take {describe(batch)}: {one_line(error)}") from error
    shape, wanted = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__, task.out_shape(y)
    if shape != wanted:
        raise ConfigError("model", f"returned {shape} for a batch of {len(x)}; the data need {wanted}")
    _check_loss(lambda: task.loss_of(outputs, y), f"outputs of shape {shape} and targets of shape {tuple(y.shape)}")
    if is_weighted:
        check_weighting(task, outputs, y)


def _check_loss(loss_of: Callable[[], Any], batch: str) -> None:
    """Raise ConfigError if the loss fails on the batch, or is not one number."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of shapes that cannot be broadcast, which is an error too
            loss = loss_of()
    except Exception as error:  # your own loss may raise anything
        raise ConfigError("task.loss", f"cannot take {batch}: {one_line(error)}") from error
    shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
    if shape != ():
        raise ConfigError("task.loss", f"returned {shape} for {batch}, not a single number; set reduction=mean")


def check_metrics(task: TensorTask, splits: Mapping[str, Tensor]) -> None:
    """Compute every metric once, for drawn outputs, to see whether the data allow it.

    Args:
        task: the metrics.
        splits: the targets of a split, by its name.

    Raises:
        ConfigError: a metric fails, is not finite, or warns that it has no meaning. Ranking metrics do if a class is
            missing.
    """
    drawn = torch.Generator().manual_seed(0)
    for split, targets in splits.items():
        outputs = torch.randn(task.out_shape(targets), generator=drawn).to(targets.device)
        for name in task.metrics:
            problem = _problem_of(partial(task.value, name, outputs, targets))
            if problem is not None:
                message = f"cannot be computed on the {split} split: {problem}"
                raise ConfigError(f"task.metrics.{name}", f"{message}; leave it out, or raise split.{split}")


def _problem_of(compute: Callable[[], Tensor | None]) -> str | None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = compute()
        except Exception as error:  # your own metric may raise anything
            return one_line(error)
    if value is not None and (value.shape != () or not value.isfinite()):
        return f"it is {value.tolist()}, not one finite number"
    return str(caught[0].message) if caught else None


def check_last_batch(model: nn.Module, batch: Batch, n: int, batch_size: int) -> None:
    """If an epoch ends with a batch of one sample, try a copy of the model on it in training mode.

    Batch normalisation, for example, cannot normalise one sample. Draws from the global random generators.

    Args:
        model: its weights stay as they are.
        batch: of training samples. One that is not inputs and targets is not tried.
        n: the number of samples in an epoch.
        batch_size: samples in each batch but the last.

    Raises:
        ConfigError: batch normalisation refuses the batch. Any other error is left to training.
    """
    if (n % batch_size != 1 and batch_size > 1) or not is_pair(batch):
        return
    try:
        copy.deepcopy(model).train()(batch[0][:1])
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            return  # training raises it again
        sizes = [size for size in range(2, n + 1) if n % size != 1]
        nearest = sorted(sorted(sizes, key=lambda size: abs(size - batch_size))[:3])
        raise ConfigError(
            "trainer.batch_size",
            f"is {batch_size}, so that the last batch of the {n} training samples has one, which batch normalisation "
            f"cannot take; choose another, such as {', '.join(map(str, nearest))}",
        ) from error
    except Exception:  # the model cannot be copied, or fails in another way: training raises it again
        return


def set_threads(threads: int | None, model: nn.Module, x: Tensor | None) -> None:
    """Set how many CPU threads torch uses.

    With `threads=None`, a small model on the CPU gets one thread, and any other keeps torch's setting. Measured on two
    cores: if the forward pass of a batch takes less than about 10 MFLOP, one thread is up to 1.2 times as fast as two,
    and faster still beside a busy process. Above that, two threads are faster.

    Args:
        threads: the number of threads, or None to choose.
        model: the model to train.
        x: one batch of its inputs; None keeps torch's setting, unless `threads` is given.
    """
    if threads is None and x is not None and x.device.type == "cpu":
        key = (repr(model), tuple(x.shape))
        if key not in _flops_known:
            _flops_known[key] = _flops(model, x)
        threads = 1 if _flops_known[key] < _FLOPS_WORTH_THREADS else None
    if threads is not None:
        torch.set_num_threads(threads)


@torch.no_grad()
def _flops(model: nn.Module, x: Tensor) -> int:
    """Count the floating-point operations of one forward pass, in evaluation mode."""
    from torch.utils.flop_counter import FlopCounterMode

    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for later allocations. With another C library, do nothing.

    By default glibc returns freed blocks of megabytes to the system and gets them back page by page. In a pack this
    happens several times in each update, and computing the gradients takes 1.3 times as long.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Hold random generators and a number of CPU threads for one trial, then restore the process's.

    On a GPU, deterministic algorithms are used as well. An operation that has none gives a warning.
    """
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        random.getstate(),
        np.random.get_state(),  # noqa: NPY002  # your own code may draw from it
    )
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=before[2])
        random.setstate(before[3])
        np.random.set_state(before[4])  # noqa: NPY002


class Turn(Generic[T]):
    """One of several trainings that take turns in this process. None of them affects another.

    Each has its own stack (a greenlet), so any function can be suspended where it calls `pause`. Each also has its own
    process-wide settings (see `_settings`), which are swapped in for its turn.

    Attributes:
        epoch: the last epoch that it paused after; 0 before the first.
        has_begun: whether it has had a turn.
    """

    def __init__(self, train: Callable[[Callable[[int], None]], T]) -> None:
        """Prepare a training without starting it.

        train: the training. It is called with the function `pause(epoch)`, to be called after each epoch.
        """
        self._greenlet = greenlet(train)
        self._settings: dict[str, Any] | None = None  # kept here while others train
        self._result: list[T] = []
        self.epoch = 0
        self.has_begun = False

    @property
    def is_over(self) -> bool:
        """Whether the training has returned."""
        return bool(self._result)

    @property
    def result(self) -> T:
        """What the training returned."""
        return self._result[0]

    def train(self) -> None:
        """Train until the next `pause` or to the end. An error of the training ends it and propagates."""
        given = () if self.has_begun else (self._pause,)
        self.has_begun = True
        with self._own_settings():
            self._follow(self._greenlet.switch(*given))

    def end(self, error: BaseException) -> None:
        """Raise `error` inside the training, where it paused. If the error escapes the training, it propagates."""
        with self._own_settings():
            self._follow(self._greenlet.throw(error))

    def _pause(self, epoch: int) -> None:
        self.epoch = epoch
        parent = self._greenlet.parent
        assert parent is not None
        parent.switch()

    def _follow(self, returned: T) -> None:
        if self._greenlet.dead:
            self._result.append(returned)

    @contextmanager
    def _own_settings(self) -> Iterator[None]:
        others = _settings()
        if self._settings is not None:
            _set_settings(self._settings)
        try:
            yield
            self._settings = _settings()
        finally:
            _set_settings(others)


def _settings() -> dict[str, Any]:
    """Return everything that `reproducible`, `set_threads` and `seed_generators` change, and torch's gradient mode."""
    return {
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "random": random_states(),
    }


def _set_settings(settings: Mapping[str, Any]) -> None:
    torch.set_grad_enabled(settings["grad"])
    torch.set_num_threads(settings["threads"])
    torch.use_deterministic_algorithms(settings["deterministic"], warn_only=settings["warn_only"])
    set_random_states(settings["random"])


def seed_generators(seed: int, stream: str) -> None:
    """Seed the global generators of torch, Python and numpy for one named use, the `stream`."""
    derived = derive_seed(seed, stream)
    if torch.accelerator.is_available():
        torch.manual_seed(derived)
    else:  # torch.manual_seed would also queue a call for each kind of device, and keep it until the device is used
        torch.default_generator.manual_seed(derived)
    random.seed(derived)
    np.random.seed(derived % 2**32)  # noqa: NPY002


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a model computes in the trainer's precision."""
    return torch.autocast(device.type, _AUTOCAST[precision]) if precision in _AUTOCAST else nullcontext()


def in_precision(precision: str, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return `call(x)`, computed in the trainer's precision; bf16 and fp16 by autocast and converted to float32."""
    if precision in _AUTOCAST:
        with autocast(precision, x.device):
            return call(x).float()
    return call(x)


def refuse_fp16(precision: str, device: torch.device) -> None:
    """Raise ConfigError for fp16 on a CPU."""
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("trainer.precision", "fp16 needs a GPU; use bf16 or float32 on a CPU")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error, or its cause, is that the device or the machine ran out of memory."""
    texts = ("can't allocate memory", "not enough memory")  # in torch's RuntimeErrors about CPU memory
    kinds = torch.OutOfMemoryError | MemoryError
    return any(isinstance(e, kinds) for e in (error, error.__cause__)) or any(words in str(error) for words in texts)
