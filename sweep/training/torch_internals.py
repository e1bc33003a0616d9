"""All uses of private parts of torch, except for its compiler: see packed/tracing.py and sweep/utils/late_compiler.py.

If torch changes something that is used here, tests/training/test_torch_internals.py names it.
"""

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils import _pytree


def leaves(tree: Any) -> list[Any]:
    """Return the leaves of nested tuples, lists and dicts, and of classes that are registered with torch."""
    return _pytree.tree_leaves(tree)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Return the leaves, each with its path in the tree, such as "image.0"; the path of a lone leaf is empty."""
    return [
        (".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path), leaf)
        for path, leaf in _pytree.tree_leaves_with_path(tree)
    ]


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return the tree with `function` applied to each leaf."""
    return _pytree.tree_map(function, tree)


def allow_scheduler_first(optimizer: Optimizer) -> None:
    """Silence torch's warning that a scheduler is stepped although the optimizer has never been."""
    optimizer._opt_called = True  # pyright: ignore


def parts_of(scheduler: Any) -> list[LRScheduler]:
    """Return the schedulers that a SequentialLR or a ChainedScheduler is made of. Others have no parts."""
    return getattr(scheduler, "_schedulers", [])


def shallow_copy(
    module: nn.Module,
    weight: Callable[[nn.Parameter], nn.Parameter],
    child: Callable[[nn.Module], nn.Module],
) -> nn.Module:
    """Return a copy of a module that shares all but its weights and its children.

    Args:
        module: the module.
        weight: returns what takes the place of a weight.
        child: returns what takes the place of a child.
    """
    made = copy.copy(module)
    made._parameters = {name: w if w is None else weight(w) for name, w in module._parameters.items()}
    made._modules = {name: m if m is None else child(m) for name, m in module._modules.items()}
    return made


def end_workers(loader: Any) -> None:
    """End the worker processes of a DataLoader, also one that is loading a batch. Without workers, do nothing."""
    iterator, loader._iterator = loader._iterator, None
    workers = getattr(iterator, "_workers", [])
    if workers:
        with suppress(Exception):  # of a worker that has died
            iterator._shutdown_workers()
    for worker in workers:
        if worker.is_alive():  # still loading a batch, after seconds
            worker.kill()
            worker.join()
