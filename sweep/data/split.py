"""The splits: samples that are divided, encoded and normalised."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweep.config.nodes import Split
from sweep.data.assignment import Assignment, Rows, assign, check
from sweep.data.encoding import expand, fit, inputs_of, plain_numbers
from sweep.data.samples import Samples
from sweep.utils.errors import ConfigError

_BLOCK_BYTES = 32 * 2**20  # of float64 numbers that are scaled at a time


@dataclass(frozen=True)
class Part:
    """One split, normalised.

    Attributes:
        x: (n, *in_shape), the inputs: float32, or int64 for tokens.
        y: (n, n_targets) real targets, or (n,) class indices.
        clean: `y` without its noise, in the same shape; None if it is not known.
        weights: (n,), how much each sample counts; None if all count the same.
    """

    x: NDArray
    y: NDArray
    clean: NDArray | None
    weights: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Splits:
    """The three splits, and what made them of the samples.

    Class indices are not scaled.

    Attributes:
        train: the samples to train on.
        val: the samples that select a model.
        test: the samples that test it.
        y_mean: (n_targets,). Targets in their own units are y * y_std + y_mean.
        y_std: (n_targets,).
        preprocessing: what `sweep.data.preprocessing.apply` needs to make a model's inputs of new data, as numbers,
            texts, lists and dicts.
        train_rows: (n_train,), the position of each training sample among all samples, from 0.
        test_rows: (n_test,), that of each test sample.
    """

    train: Part
    val: Part
    test: Part
    y_mean: NDArray[np.float32]
    y_std: NDArray[np.float32]
    preprocessing: dict[str, Any]
    train_rows: Rows
    test_rows: Rows


def divide(samples: Samples, split: Split) -> Splits:
    """Divide the samples, encode the columns of a table, and normalise. See `prepare`."""
    return prepare(samples, split)[1]


def prepare(samples: Samples, split: Split) -> tuple[Samples, Splits]:
    """Divide the samples, encode the columns of a table, and normalise.

    Whatever is computed from the data is computed from the training split only: the categories and the fillings of
    `Samples.encoding`, and with `split.normalize` the mean and the deviation of each column of a table or each channel
    of images. Inputs and regression targets become (x - mean) / deviation, except for inputs that are 0 or 1 by
    encoding.

    Args:
        samples: in their own units.
        split: how to divide them.

    Returns:
        The samples with the inputs that a model sees, in their own units and without encoding; and the splits.

    Raises:
        ConfigError: the samples cannot be divided in this way, a split would be too small (fewer than 2, 1 and 1
            samples), a column cannot be encoded, or a feature or a target that is to be normalised is constant; or
            all samples of a split have the weight 0.
    """
    rows = assign(samples, split)
    check(samples, split, rows)
    if samples.encoding is None:
        columns = plain_numbers(samples.features) if samples.x.ndim == 2 and not samples.tokens else None
        is_scaled = np.ones(samples.x.shape[1], bool)
    else:
        columns = fit(samples.x[rows.train], samples.encoding)
        inputs, is_scaled = inputs_of(columns)
        samples = replace(samples, x=expand(samples.x, columns, samples.encoding), features=inputs, encoding=None)
    return samples, _normalised(samples, rows, split.normalize, columns, is_scaled)


def _normalised(
    samples: Samples, rows: Assignment, normalize: bool, columns: list[dict[str, Any]] | None, is_scaled: NDArray
) -> Splits:
    """Cut and normalise the samples.

    Args:
        samples: with the inputs that a model sees.
        rows: of each split.
        normalize: False leaves inputs and targets in their own units.
        columns: what makes the inputs of a table's columns; None for images.
        is_scaled: (n_features,), whether an input is normalised.
    """
    x, y = samples.x, samples.y
    is_real = y.dtype.kind == "f"
    x_mean, x_std = np.zeros((1, x.shape[1], *[1] * (x.ndim - 2))), np.ones((1, x.shape[1], *[1] * (x.ndim - 2)))
    y_mean, y_std = np.zeros(samples.out_features), np.ones(samples.out_features)
    if normalize:
        if not samples.tokens:
            x_mean, x_std = _statistics_of(x, rows.train)
            x_mean[:, ~is_scaled], x_std[:, ~is_scaled] = 0, 1
            _refuse_constant(samples, x_std)
        if is_real:
            y_mean, y_std = (s[0] for s in _statistics(y[rows.train]))
            if not (y_std > 0).all():
                raise ConfigError("data.target", "is constant over the training split; there is nothing to learn")

    def part(chosen: Rows) -> Part:
        return Part(
            x[chosen] if samples.tokens else _scaled(x, chosen, x_mean, x_std),
            _scaled(y, chosen, y_mean, y_std) if is_real else y[chosen],
            None if samples.clean is None else _scaled(samples.clean, chosen, y_mean, y_std),
            None if samples.weights is None else samples.weights[chosen],
        )

    preprocessing = {
        "columns": columns,
        "inputs": list(samples.features),
        "mean": x_mean.ravel().tolist(),
        "std": x_std.ravel().tolist(),
    }
    return Splits(
        part(rows.train),
        part(rows.val),
        part(rows.test),
        y_mean.astype(np.float32),
        y_std.astype(np.float32),
        preprocessing,
        rows.train,
        rows.test,
    )


def _scaled(values: NDArray[np.floating], rows: Rows, mean: NDArray, std: NDArray) -> NDArray[np.float32]:
    """Return (values - mean) / std of the rows, computed in float64, a block of rows at a time to save memory."""
    scaled = np.empty((len(rows), *values.shape[1:]), np.float32)
    for block in _blocks(len(rows), scaled[:1].size):
        scaled[block] = (values[rows[block]] - mean) / std
    return scaled


def _blocks(n: int, width: int) -> list[slice]:
    """Return slices that cover `n` rows of `width` float64 numbers, each of at most _BLOCK_BYTES but one row."""
    size = max(1, _BLOCK_BYTES // (8 * max(1, width)))
    return [slice(start, start + size) for start in range(0, n, size)]


def _statistics_of(values: NDArray[np.floating], rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the `_statistics` of the rows. Those of a large table are computed a few columns at a time.

    A single column would be summed in another order, with other rounding; so each time there are at least two.
    """
    n_columns = values.shape[1]
    n_times = min(-(-8 * len(rows) * n_columns // _BLOCK_BYTES), n_columns // 2)
    if values.ndim > 2 or n_times < 2:
        return _statistics(values[rows])
    borders = np.linspace(0, n_columns, n_times + 1).astype(int)
    found = [_statistics(np.ascontiguousarray(values[rows, start:end])) for start, end in pairwise(borders)]
    return np.concatenate([mean for mean, _ in found], axis=1), np.concatenate([std for _, std in found], axis=1)


def _statistics(values: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation over samples and pixels, shaped to broadcast; 0 for a constant's deviation."""
    axes = (0, *range(2, values.ndim))  # all except columns, or channels
    exact = values.astype(np.float64, copy=False)
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
