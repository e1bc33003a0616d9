"""Calls a function of tensors as the plain operations it consists of, without what torch.func does around each."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config as fx_config

from sweep import collector
from sweep.errors import one_line

Outputs = tuple[Tensor, ...]


class Traced:
    """The function itself until it has done so much that tracing it pays; from then on its operations alone.

    On the CPU this takes a third off a pack's gradients. A trace takes a second, and serves any number of rows and
    samples: where one of them is new, the trace's result is compared with the function's own. `problem` says why there
    is no trace, where it was tried.
    """

    def __init__(self, function: Callable[..., Outputs], worth: int) -> None:
        """worth: rows that the function has worked on, over all calls, before it is traced."""
        self._function, self._rows_left = function, worth
        self._graph: Callable[..., Outputs] | None = None
        self._is_right: dict[tuple[int, ...], bool] = {}  # by rows and samples
        self.problem: str | None = None

    def __call__(self, stacked: Tensor, extra: dict[str, Tensor], x: Tensor, y: Tensor) -> Outputs:
        if self._graph is None and self.problem is None:
            self._rows_left -= len(stacked)
            if self._rows_left < 0 and len(stacked) > 1:  # a size of 1 would be taken for a constant
                self._trace(stacked, extra, x, y)
        if self._graph is None:
            return self._function(stacked, extra, x, y)
        sizes = x.shape[:2]
        if self.serves(*sizes):
            return self._graph(stacked, extra, x, y)
        outputs = self._function(stacked, extra, x, y)
        if sizes not in self._is_right:
            self._is_right[sizes] = self._agrees(outputs, stacked, extra, x, y)
        return outputs

    def serves(self, n_rows: int, n_samples: int) -> bool:
        """Whether for such sizes only the trace is called."""
        return self._graph is not None and self._is_right.get((n_rows, n_samples), False)

    def _trace(self, *arguments: Any) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx  # loads sympy

        try:
            with sizes_apart():
                self._graph = make_fx(lambda *given: self._function(*given), tracing_mode="symbolic")(*arguments)
        except Exception as error:  # whatever torch cannot trace
            self.problem = one_line(error, 160)
        collector.set_aside()

    def _agrees(self, outputs: Outputs, *arguments: Any) -> bool:
        assert self._graph is not None
        try:
            found = self._graph(*arguments)
        except RuntimeError:  # sizes that the trace took for constants
            return False
        pairs = list(zip(found, outputs, strict=True))
        if any(a.shape != b.shape for a, b in pairs):
            return False
        return all(torch.allclose(a, b, rtol=1e-5, atol=1e-7, equal_nan=True) for a, b in pairs)


def sizes_apart() -> AbstractContextManager[None]:
    """Has what is traced or compiled meanwhile hold for all sizes. By default torch takes sizes, and offsets, that
    happen to be equal at first (a batch of 64 in a pack of 64) for the same one, and they must be so for ever."""
    return fx_config.patch(use_duck_shape=False)  # pyright: ignore[reportAttributeAccessIssue]  # torch adds it
