"""Arrays whose training samples are changed at random as they are loaded: augmentation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sweep.data.samples import Samples
from sweep.data.split import Splits


class AugmentedSamples(Dataset[tuple[Tensor, ...]]):
    """The training split. `Samples.augment` gets an input in its own units; the result is normalised.

    Attributes:
        label: what an error about a sample names.
    """

    label = "augmented sample"

    def __init__(self, samples: Samples, splits: Splits) -> None:
        """Prepare to load samples. Their arrays are not copied."""
        assert samples.augment is not None
        self._augment: Callable[[Any], Any] = samples.augment
        self._x, self._rows, self._part = samples.x, splits.train_rows, splits.train
        shape = (-1, *[1] * (samples.x.ndim - 2))
        self._mean, self._std = (
            torch.tensor(splits.preprocessing[name], dtype=torch.float64).reshape(shape) for name in ("mean", "std")
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """Return the input, the targets and, if samples have some, the weight. Raises ValueError for another shape."""
        given = self._x[self._rows[index]]
        x = torch.from_numpy(given.astype(self._part.x.dtype))  # a copy, which may be changed in place
        changed = self._augment(x)
        if not isinstance(changed, Tensor):
            raise ValueError(f"returned a {type(changed).__name__}, not a tensor")
        if changed.shape != given.shape:
            what = f"returned shape {tuple(changed.shape)} for a sample of shape {given.shape}"
            raise ValueError(f"{what}; a model sees samples of one shape, also in validation")
        if changed.dtype.is_floating_point != x.dtype.is_floating_point:
            raise ValueError(f"returned {changed.dtype} for a sample of {x.dtype}")
        if x.dtype.is_floating_point:
            changed = ((changed.double() - self._mean) / self._std).to(x.dtype)
        labels = (self._part.y, *([] if self._part.weights is None else [self._part.weights]))
        return changed, *(_label(values, index) for values in labels)


def _label(values: NDArray, index: int) -> Tensor:
    return torch.from_numpy(np.array(values[index]))
