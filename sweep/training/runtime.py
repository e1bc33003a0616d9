"""Process-wide settings for training: they are set for a trial and restored afterwards."""

import ctypes
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
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


def _set_deterministic_algorithms(enabled: bool, warn_only: bool) -> None:
    """Call torch.use_deterministic_algorithms if that changes anything, since it loads torch's compiler."""
    now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if now != (enabled, warn_only):
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


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
        _set_deterministic_algorithms(*before[1:3])
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
    _set_deterministic_algorithms(settings["deterministic"], settings["warn_only"])
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
