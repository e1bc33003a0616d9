"""Dividing samples into splits and normalising them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweep.config.nodes import Split
from sweep.data.samples import Samples
from sweep.utils.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """One split, normalised.

    Attributes:
        x: (n, *in_shape), the inputs: float32, or int64 for tokens.
        y: (n, n_targets) real targets, or (n,) class indices.
        clean: `y` without its noise, in the same shape; None if it is not known.
    """

    x: NDArray
    y: NDArray
    clean: NDArray | None


@dataclass(frozen=True)
class Splits:
    """The three splits, and the scale of the targets: y in its own units is y * y_std + y_mean, (n_targets,) each.

    Class indices are not scaled.
    """

    train: Part
    val: Part
    test: Part
    y_mean: NDArray[np.float32]
    y_std: NDArray[np.float32]


def divide(samples: Samples, split: Split) -> Splits:
    """Shuffle the samples by `split.seed` and divide them.

    With `split.normalize`, inputs and regression targets become (x - mu) / sigma. mu and sigma are computed from the
    training split only, for each column of a table or each channel of images.

    Raises ConfigError if a split would be too small (fewer than 2, 1 and 1 samples), or if a feature or a target that
    is to be normalised is constant.
    """
    n = min(len(samples.x), split.max_samples or len(samples.x))
    n_val, n_test = round(n * split.val), round(n * split.test)
    n_train = n - n_val - n_test
    if n_train < 2 or n_val < 1 or n_test < 1:
        raise ConfigError(
            "split",
            f"{n} samples are too few: {n_train} to train, {n_val} to validate, {n_test} to test (needed: 2, 1, 1)",
        )
    order = np.random.default_rng(split.seed).permutation(len(samples.x))[:n]
    train, val, test = np.split(order, [n_train, n_train + n_val])
    x, y = samples.x, samples.y
    x_dtype, y_dtype = (
        np.int64 if samples.tokens else np.float32,
        np.float32 if samples.task == "regression" else np.int64,
    )
    y_mean, y_std = np.zeros(samples.out_features), np.ones(samples.out_features)
    if split.normalize:
        if not samples.tokens:
            x_mean, x_std = _statistics(x[train])
            _refuse_constant(samples, x_std)
            x = (x - x_mean) / x_std
        if samples.task == "regression":
            y_mean, y_std = (s[0] for s in _statistics(y[train]))
            if not (y_std > 0).all():
                raise ConfigError("data.target", "is constant over the training split; there is nothing to learn")
            y = (y - y_mean) / y_std
    scaled = None if samples.clean is None else (samples.clean - y_mean) / y_std

    def part(rows: NDArray[np.int64]) -> Part:
        clean = None if scaled is None else scaled[rows].astype(np.float32)
        return Part(x[rows].astype(x_dtype), y[rows].astype(y_dtype), clean)

    return Splits(part(train), part(val), part(test), y_mean.astype(np.float32), y_std.astype(np.float32))


def _statistics(values: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation over samples and pixels, shaped to broadcast; 0 for a constant's deviation."""
    axes = (0, *range(2, values.ndim))  # all except columns, or channels
    exact = values.astype(np.float64)
    mean, std = exact.mean(axes, keepdims=True), exact.std(axes, keepdims=True)
    std[std <= 16 * np.finfo(values.dtype).eps * np.abs(mean)] = 0  # only rounding
    return mean, std


def _refuse_constant(samples: Samples, std: NDArray[np.float64]) -> None:
    constant = np.flatnonzero(std == 0)
    if len(constant):
        name = samples.features[int(constant[0])]
        raise ConfigError(
            "data.features",
            f"column '{name}' is constant over the training split; leave it out, or set split.normalize=false",
        )
