"""The check of a data option."""

from collections.abc import Callable

import numpy as np

from sweep.config.nodes import Split
from sweep.data import Datasets, Samples
from sweep.data.samples import PARTS
from sweep.data.split import divide


def check_data_option(load: Callable[[], Samples | Datasets]) -> None:
    """Check that a data option returns samples that can be divided, and the same samples each time.

    Of torch datasets, it checks that there are as many samples each time, and that the first ones make the same batch
    if what is drawn is drawn from torch, `random` or `numpy.random`.

    Args:
        load: the function that the option's `_target_` names, with its arguments bound. It is called twice.

    Raises:
        AssertionError: it returns anything but `sweep.Samples`, or other samples the second time.
        ConfigError: the arrays of the samples do not fit together, or there are too few samples to divide.
    """
    first, second = load(), load()
    if isinstance(first, Datasets) and isinstance(second, Datasets):
        _check_datasets(first, second)
        return
    kind = type(first).__name__
    assert isinstance(first, Samples), f"a data option returns sweep.Samples or sweep.Datasets, not {kind}"
    assert isinstance(second, Samples), "it returns another kind of data from one call to the next"
    for part in ("x", "y", "clean", "groups", "weights", "split"):
        one, other = getattr(first, part), getattr(second, part)
        has_nan = part == "x"  # empty cells of a table
        same = one is other or (one is not None and other is not None and np.array_equal(one, other, has_nan))
        assert same, f"{part} differs from one call to the next; draw from a seed that is an argument"
    splits = divide(first, Split(kind="random" if first.split is None else "given"))
    n = sum(len(part.x) for part in (splits.train, splits.val, splits.test))
    assert n <= len(first.x), "the split has more samples than the data"


def _check_datasets(first: Datasets, second: Datasets) -> None:
    import torch

    from sweep.training.loaders import inspected
    from sweep.training.torch_internals import leaves

    sizes = [[datasets.size(part) for part in PARTS] for datasets in (first, second)]
    assert sizes[0] == sizes[1], "the number of samples differs from one call to the next"
    batches = [leaves(inspected(datasets)[1]) for datasets in (first, second)]
    for one, other in zip(*batches, strict=True):
        same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        assert same, "a sample differs from one call to the next; draw from torch, random or numpy.random"
