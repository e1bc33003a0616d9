"""sweep/training/torch_internals.py: that torch still has what it takes, and that it still means the same."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, LRScheduler, SequentialLR
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from sweep.training.torch_internals import (
    allow_scheduler_first,
    end_workers,
    leaves,
    mapped,
    named_leaves,
    parts_of,
    shallow_copy,
)


def changed(name: str) -> str:
    return f"torch {torch.__version__} has changed {name}; sweep/training/torch_internals.py has to follow"


def test_leaves_of_a_batch_have_paths():
    batch = {"image": [1, 2], "label": (3,)}
    assert leaves(batch) == [1, 2, 3], changed("torch.utils._pytree.tree_leaves")
    assert mapped(lambda leaf: -leaf, batch) == {"image": [-1, -2], "label": (-3,)}, changed("_pytree.tree_map")
    names = [name for name, _ in named_leaves(batch)]
    assert names == ["image.0", "image.1", "label.0"], changed("torch.utils._pytree.tree_leaves_with_path")
    assert named_leaves(5) == [("", 5)]


def test_a_scheduler_may_step_before_its_optimizer():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = ConstantLR(optimizer)
    allow_scheduler_first(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            scheduler.step()
        except UserWarning:
            pytest.fail(changed("Optimizer._opt_called"))


@pytest.mark.parametrize("kind", [SequentialLR, ChainedScheduler])
def test_a_scheduler_of_schedulers_has_parts(kind: Any):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    parts: list[LRScheduler] = [ConstantLR(optimizer), ConstantLR(optimizer)]
    made = kind(optimizer, parts, milestones=[1]) if kind is SequentialLR else kind(parts, optimizer)
    assert [*parts_of(made)] == parts, changed(f"{kind.__name__}._schedulers")
    assert parts_of(parts[0]) == []


def test_a_copy_of_a_module_has_weights_and_children_of_its_own():
    module = nn.Sequential(nn.Linear(2, 1))
    other = nn.Parameter(torch.ones(1))
    made = shallow_copy(module, lambda w: w, lambda child: shallow_copy(child, lambda w: other, lambda c: c))
    assert all(weight is other for weight in made.parameters()), changed("Module._parameters or Module._modules")
    assert all(weight is not other for weight in module.parameters())


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # by torchdata
def test_the_workers_of_a_loader_end():
    loader = StatefulDataLoader(TensorDataset(torch.zeros(8, 1)), num_workers=1, persistent_workers=True)
    next(iter(loader))
    assert getattr(loader._iterator, "_workers", None), changed("DataLoader._iterator or its _workers")
    workers = [*loader._iterator._workers]  # pyright: ignore
    end_workers(loader)
    assert not any(worker.is_alive() for worker in workers), changed("the loader's _shutdown_workers")
