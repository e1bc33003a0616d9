"""Compiles a function of tensors once, for all sizes that its trace holds for."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from sweep import collector
from sweep.train.traced import sizes_apart

T = TypeVar("T")


class Compiled(Generic[T]):
    """A function of nested dicts, lists and tuples of tensors, with a result of such; compiled at its first call.

    What `torch.compile` has around a compiler, bytecode and a guard for everything that the function refers to, takes
    longer to set up than a compiled update takes to load (3 of 5 s), and a tenth of the update itself. Here the nesting
    has to stay as it was in the first call, and sizes are checked when they are new: the function itself is called
    where they were taken for constants.
    """

    def __init__(self, function: Callable[..., T]) -> None:
        self._function = function
        self._compiled: Callable[..., Iterable[Tensor]] | None = None
        self._result: Any = None  # one of the function's, for its nesting
        self._inputs: list[Any] = []  # what stood for the tensors in the trace
        self._fits: dict[tuple[int, ...], bool] = {}  # by sizes

    def __call__(self, sizes: tuple[int, ...], *arguments: Any) -> T:
        """sizes: all that may differ from call to call, none of them 1 in the first."""
        tensors = [*_leaves(arguments)]
        if self._compiled is None:
            self._compile(arguments, tensors)
        assert self._compiled is not None
        if sizes not in self._fits:
            self._fits[sizes] = self._holds_for(tensors)
        if not self._fits[sizes]:
            return self._function(*arguments)
        return _refilled(self._result, iter(self._compiled(*tensors)))

    def _compile(self, arguments: tuple[Any, ...], tensors: list[Tensor]) -> None:
        from torch._inductor import standalone_compile
        from torch.fx.experimental.proxy_tensor import make_fx  # loads sympy

        def flat(*given: Tensor) -> list[Tensor]:
            self._result = self._function(*_refilled(arguments, iter(given)))
            return [*_leaves(self._result)]

        with sizes_apart():
            graph = make_fx(flat, tracing_mode="symbolic")(*tensors)
            for node in graph.graph.nodes:
                if "val" in node.meta:
                    node.meta["example_value"] = node.meta["val"]  # where the compiler looks for symbolic sizes
            self._inputs = [node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")]
            self._compiled = standalone_compile(graph, self._inputs, dynamic_shapes="from_graph")
        collector.set_aside()

    def _holds_for(self, tensors: list[Tensor]) -> bool:
        """Whether the trace does. Where in their memory the tensors begin is left out: it concerns no operation."""
        shapes = self._inputs[0].fake_mode.shape_env
        conditions = shapes.produce_guards_expression(self._inputs, ignore_static=False).split(" and ")
        conditions = [condition for condition in conditions if "storage_offset" not in condition]
        return shapes.evaluate_guards_expression(" and ".join(conditions), tensors)


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
