"""Calls a function of tensors as the plain operations that it consists of, or has them compiled."""

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
    """A function of nested dicts, lists and tuples of tensors, whose result is one of these too.

    It is called as it is until it has done so much that tracing it pays; from then on its operations alone, without
    what torch.func does around each. On the CPU this takes a third off a pack's gradients. A trace takes a second and
    serves other sizes than those it was made with; where they are new it is asked whether it holds for them. The
    nesting has to stay as it was. `problem` says why there is no trace, where it was tried.

    is_compiled: whether the operations are compiled, too. What `torch.compile` has around its compiler, bytecode and
    guards, takes longer to set up than a compiled update takes to load (3 of 5 s), and a twentieth of the update.
    """

    def __init__(self, function: Callable[..., T], worth: int = 0, is_compiled: bool = False) -> None:
        """worth: rows that the function has worked on, over all calls, before it is traced."""
        self._function, self._rows_left, self._is_compiled = function, worth, is_compiled
        self._operations: Callable[..., Iterable[Tensor]] | None = None
        self._result: Any = None  # one of the function's, for its nesting
        self._inputs: list[Any] = []  # what stood for the tensors in the trace
        self._holds: dict[tuple[int, ...], bool] = {}
        self.problem: str | None = None

    def __call__(self, sizes: tuple[int, ...], *arguments: Any) -> T:
        """sizes: all that differ from call to call, such as rows and samples."""
        if self._operations is None:
            self._rows_left -= sizes[0]
            if self.problem is not None or self._rows_left >= 0 or sizes[0] == 1:  # 1 would be taken for a constant
                return self._function(*arguments)
            self._trace(arguments)
        if not self.serves(sizes, *arguments):
            return self._function(*arguments)
        assert self._operations is not None
        return _refilled(self._result, iter(self._operations(*_leaves(arguments))))

    def serves(self, sizes: tuple[int, ...], *arguments: Any) -> bool:
        """Whether for such sizes only the operations are called."""
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
        except Exception as error:  # whatever torch cannot trace
            if self._is_compiled:
                raise
            self.problem = one_line(error, 160)
        gc_control.set_aside()

    def _compile(self, graph: torch.fx.GraphModule) -> Callable[..., Iterable[Tensor]]:
        from torch._inductor import standalone_compile

        for node in graph.graph.nodes:
            if "val" in node.meta:
                node.meta["example_value"] = node.meta["val"]  # where the compiler looks for sizes that may differ
        return standalone_compile(graph, self._inputs, dynamic_shapes="from_graph")

    def _holds_for(self, tensors: list[Tensor]) -> bool:
        """Whether the trace does. Where in their memory the tensors begin is left out: it concerns no operation."""
        shapes = self._inputs[0].fake_mode.shape_env
        conditions = shapes.produce_guards_expression(self._inputs, ignore_static=False) or "True"
        guards = " and ".join(c for c in conditions.split(" and ") if "storage_offset" not in c)
        return shapes.evaluate_guards_expression(guards or "True", tensors)


def sizes_apart() -> AbstractContextManager[None]:
    """Has what is traced meanwhile hold for all sizes. By default torch takes sizes, and offsets, that happen to be
    equal at first (a batch of 64 in a pack of 64) for the same one, and they must be so for ever."""
    return fx_config.patch(use_duck_shape=False)  # pyright: ignore[reportAttributeAccessIssue]  # torch adds it


def _leaves(nested: Any) -> Iterator[Tensor]:
    for part in nested.values() if isinstance(nested, dict) else nested:
        if isinstance(part, torch.Tensor):
            yield part
        else:
            yield from _leaves(part)


def _refilled(nested: Any, tensors: Iterator[Tensor]) -> Any:
    """The same nesting with other tensors."""
    if isinstance(nested, torch.Tensor):
        return next(tensors)
    if isinstance(nested, dict):
        return {key: _refilled(part, tensors) for key, part in nested.items()}
    return type(nested)(_refilled(part, tensors) for part in nested)
