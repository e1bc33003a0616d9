"""The targets of torch datasets, as far as they can be had without loading a sample."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from sweep.data.datasets import Datasets


def readable_targets(datasets: Datasets, part: str) -> Tensor | None:
    """Return the targets of train, val or test if it is made of torch's own datasets; None for any other.

    Those of your own may compute their targets, and a `collate_fn` may change them.
    """
    return None if datasets.collate_fn is not None else _targets(getattr(datasets, part))


def _targets(dataset: Any) -> Tensor | None:
    if type(dataset) is TensorDataset:
        return dataset.tensors[1] if len(dataset.tensors) == 2 else None
    if type(dataset) is Subset:
        whole = _targets(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    if type(dataset) is ConcatDataset:
        parts = [_targets(of_one) for of_one in dataset.datasets]
        known = [targets for targets in parts if targets is not None]
        return torch.cat(known) if len(known) == len(parts) else None
    return None
