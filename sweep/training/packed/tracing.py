"""Tracing a function of tensors to the plain operations that it consists of, and compiling them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.fx.experimental import _config as fx_config

from sweep.utils import gc_control
from sweep.utils.errors import one_line

T = TypeVar("T")


class TracedFunction(Generic[T]):
    """A function that is replaced by a trace of its tensor operations once it has run often enough.

    Arguments and result are nested dicts, lists and tuples of tensors. Their nesting must not change between calls.

    A trace leaves out what torch.func does around each operation. On the CPU this takes a third off the time of a
    pack's gradients. A trace takes a second to make. It is symbolic in the sizes: new sizes are checked against the
    conditions that torch noted while tracing. For sizes that do not meet them, the function itself is called.

    The operations can be compiled, too. This uses torch's compiler without `torch.compile`: the latter's bytecode and
    guards took 3 of the 5 s to set up compiled code that was already on the disk, and made an epoch 1.2 times as long.

    problem: why tracing failed; None if it did not, or was not tried. A failure to compile is raised by the call.
    """

    def __init__(self, function: Callable[..., T], worth: int = 0, is_compiled: bool = False) -> None:
        """Wrap a function without tracing it yet.

        Args:
            function: what to trace.
            worth: how many rows the function handles, over all calls, before it is traced.
            is_compiled: whether to compile the trace.
        """
        self._function, self._rows_left, self._is_compiled = function, worth, is_compiled
        self._operations: Callable[..., Iterable[Tensor]] | None = None
        self._result: Any = None  # a result of the function, for its nesting
        self._inputs: list[Any] = []  # the symbolic tensors of the trace
        self._holds: dict[tuple[int, ...], bool] = {}
        self.problem: str | None = None

    def __call__(self, sizes: tuple[int, ...], *arguments: Any) -> T:
        """Call the function, or its trace.

        sizes: all the sizes that may differ from call to call. The first is the number of rows.
        """
        if self._operations is None:
            self._rows_left -= sizes[0]
            if self.problem is not None or self._rows_left >= 0 or sizes[0] == 1:  # a trace takes 1 for a constant
                return self._function(*arguments)
            self._trace(arguments)
        if not self.serves(sizes, *arguments):
            return self._function(*arguments)
        assert self._operations is not None
        return _refilled(self._result, iter(self._operations(*_leaves(arguments))))

    def serves(self, sizes: tuple[int, ...], *arguments: Any) -> bool:
        """Return whether the trace is used for these sizes."""
        if self._operations is None:
            return False
        if sizes not in self._holds:
            self._holds[sizes] = self._holds_for([*_leaves(arguments)])
        return self._holds[sizes]

    def _trace(self, arguments: tuple[Any, ...]) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx  # loads sympy

        def flat(*tensors: Tensor) -> list[Tensor]:
            self._result = self._function(*_refilled(arguments, iter(tensors)))
            return [*_leaves(self._result)]

        try:
            with sizes_apart():
                graph = make_fx(flat, tracing_mode="symbolic")(*_leaves(arguments))
                self._inputs = [node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")]
                self._operations = self._compile(graph) if self._is_compiled else graph
        except Exception as error:  # torch may fail to trace in any way
            if self._is_compiled:
                raise
            self.problem = one_line(error, 160)
        gc_control.set_aside()

    def _compile(self, graph: torch.fx.GraphModule) -> Callable[..., Iterable[Tensor]]:
        from torch._inductor import standalone_compile

        for node in graph.graph.nodes:
            if "val" in node.meta:
                node.meta["example_value"] = node.meta["val"]  # the compiler reads symbolic sizes from here
        return standalone_compile(graph, self._inputs, dynamic_shapes="from_graph")

    def _holds_for(self, tensors: list[Tensor]) -> bool:
        """Return whether the tensors meet the trace's conditions. Storage offsets do not matter to any operation."""
        shapes = self._inputs[0].fake_mode.shape_env
        conditions = shapes.produce_guards_expression(self._inputs, ignore_static=False) or "True"
        guards = " and ".join(c for c in conditions.split(" and ") if "storage_offset" not in c)
        return shapes.evaluate_guards_expression(guards or "True", tensors)


def sizes_apart() -> AbstractContextManager[None]:
    """Hold a setting under which torch traces every size as its own symbol.

    By default, sizes or offsets that are equal while tracing (such as a batch of 64 in a pack of 64) share a symbol, so
    that the trace is valid only while they stay equal.
    """
    return fx_config.patch(use_duck_shape=False)  # pyright: ignore[reportAttributeAccessIssue]  # torch adds it


def _leaves(nested: Any) -> Iterator[Tensor]:
    for part in nested.values() if isinstance(nested, dict) else nested:
        if isinstance(part, torch.Tensor):
            yield part
        else:
            yield from _leaves(part)


def _refilled(nested: Any, tensors: Iterator[Tensor]) -> Any:
    """Return the same nesting, filled with other tensors in the order of `_leaves`."""
    if isinstance(nested, torch.Tensor):
        return next(tensors)
    if isinstance(nested, dict):
        return {key: _refilled(part, tensors) for key, part in nested.items()}
    return type(nested)(_refilled(part, tensors) for part in nested)
