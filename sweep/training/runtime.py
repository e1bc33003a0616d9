"""The process-wide settings that a trial trains under, put back afterwards."""

import copy
import ctypes
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from greenlet import greenlet
from torch import Tensor, nn

from sweep.training.checkpoint import random_states, set_random_states
from sweep.utils.errors import ConfigError, one_line
from sweep.utils.seeds import derive_seed

T = TypeVar("T")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 512 * 2**20
_LARGEST_KEPT_BYTES = 32 * 2**20  # as much as glibc allows
_FLOPS_WORTH_THREADS = 10_000_000
_flops_known: dict[
    tuple[str, tuple[int, ...]], int
] = {}  # by model and batch; counting takes 8 ms, a study counts often


def pick_device(name: str) -> torch.device:
    """`auto` takes the GPU where there is one. Raises ConfigError for a device that this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()  # which a device without memory, `meta`, cannot do
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            "trainer.device", f"'{name}' cannot be used here ({one_line(error)}); try auto or cpu"
        ) from error
    return device


@torch.no_grad()
def check_model(model: nn.Module, x: Tensor, out_features: int) -> None:
    """Tries the model on one batch of inputs; lazy layers get their shapes. Raises ConfigError unless it fits."""
    model.eval()
    try:
        outputs = model(x)
    except Exception as error:  # whatever a user's model raises
        raise ConfigError("model", f"cannot take a batch of shape {tuple(x.shape)}: {one_line(error)}") from error
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if shape != (len(x), out_features):
        raise ConfigError("model", f"returned {shape} for a batch of {len(x)}; the data need {(len(x), out_features)}")


def check_last_batch(model: nn.Module, x: Tensor, batch_size: int) -> None:
    """Try a copy of the model on a training batch of one sample, if an epoch ends with one. x: all training samples.

    Raises ConfigError if the model cannot take it, as batch normalisation cannot. Draws from the random generators.
    """
    n = len(x)
    if n % batch_size != 1 and batch_size > 1:
        return
    try:
        copy.deepcopy(model).train()(x[:1])
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            return  # training will tell
        sizes = [size for size in range(2, n + 1) if n % size != 1]
        nearest = sorted(sorted(sizes, key=lambda size: abs(size - batch_size))[:3])
        raise ConfigError(
            "trainer.batch_size",
            f"is {batch_size}, so that the last batch of the {n} training samples has one, which batch normalisation "
            f"cannot take; choose another, such as {', '.join(map(str, nearest))}",
        ) from error
    except Exception:  # a model that cannot be copied, or whatever else it raises: training will tell
        return


def set_threads(threads: int | None, model: nn.Module, x: Tensor) -> None:
    """Sets torch's CPU threads; None takes one for a model so small that a second one only gets in the way.

    x: one batch of inputs. Measured on two cores: below about 10 MFLOP a batch, forward, one thread is up to 1.2 times
    as fast as two, and much more beside a busy process; above it two win.
    """
    if threads is None and x.device.type == "cpu":
        key = (repr(model), tuple(x.shape))
        if key not in _flops_known:
            _flops_known[key] = _flops(model, x)
        threads = 1 if _flops_known[key] < _FLOPS_WORTH_THREADS else None
    if threads is not None:
        torch.set_num_threads(threads)


@torch.no_grad()
def _flops(model: nn.Module, x: Tensor) -> int:
    """Floating-point operations of one forward pass, in evaluation mode."""
    from torch.utils.flop_counter import FlopCounterMode

    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


def keep_freed_memory() -> None:
    """Has the C library keep what is freed for what comes next, where it is glibc.

    Otherwise it returns blocks of megabytes to the system and gets them back page by page, several times in each update
    of a pack: its gradients take 1.3 times as long.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Deterministic algorithms, and generators and CPU threads of the trial's own."""
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        random.getstate(),
        np.random.get_state(),  # noqa: NPY002  # a user's code may draw from it
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
    """One of several trainings that take turns in this process, each as if it were alone.

    Each has a stack of its own (a greenlet), so that any function can be suspended where it calls `pause`, and the
    settings of the process that it needs.

    epoch: the last that it paused after, 0 before the first. has_begun: whether it has had a turn. is_over: whether it
    has come to its end, which is `result`.
    """

    def __init__(self, train: Callable[[Callable[[int], None]], T]) -> None:
        """train: is given what to call after each epoch."""
        self._greenlet = greenlet(train)
        self._settings: dict[str, Any] | None = None  # its own, while others train
        self._result: list[T] = []
        self.epoch = 0
        self.has_begun = False

    @property
    def is_over(self) -> bool:
        return bool(self._result)

    @property
    def result(self) -> T:
        return self._result[0]

    def train(self) -> None:
        """Train to the end of an epoch, or to the end. What the training raises is raised here, and ends it."""
        given = () if self.has_begun else (self._pause,)
        self.has_begun = True
        with self._own_settings():
            self._follow(self._greenlet.switch(*given))

    def end(self, error: BaseException) -> None:
        """Raise `error` in the training, where it paused; what comes out is raised here."""
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
    """All that `reproducible`, `set_threads` and `seed_generators` change, and whether gradients are computed."""
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
    """Seeds torch's, Python's and numpy's global generators for one named use."""
    derived = derive_seed(seed, stream)
    if torch.accelerator.is_available():
        torch.manual_seed(derived)
    else:  # the same without a note for each kind of device, which torch keeps until one is used
        torch.default_generator.manual_seed(derived)
    random.seed(derived)
    np.random.seed(derived % 2**32)  # noqa: NPY002


def in_precision(precision: str, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What `call` makes of `x`, computed in the trainer's precision, in float32 (or float64 if the model is)."""
    if precision == "bf16":
        with torch.autocast(x.device.type, torch.bfloat16):
            return call(x).float()
    return call(x)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the machine, had no more memory to give."""
    texts = ("can't allocate memory", "not enough memory")  # by torch, of a CPU's
    kinds = torch.OutOfMemoryError | MemoryError
    return any(isinstance(e, kinds) for e in (error, error.__cause__)) or any(words in str(error) for words in texts)
