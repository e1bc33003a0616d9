"""Dividing samples into splits, encoding the columns of tables, and normalising."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweep.config.nodes import Split
from sweep.data.encoding import expand, fit, inputs_of, plain_numbers
from sweep.data.samples import PARTS, Samples
from sweep.utils.errors import ConfigError

log = logging.getLogger("sweep")

_BLOCK_BYTES = 32 * 2**20  # of float64 numbers that are scaled at a time
_FEWEST = (2, 1, 1)  # samples in each split

Rows = NDArray[np.int64]


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


@dataclass(frozen=True)
class Assignment:
    """The rows of each split, (n,) each, in the order in which the split holds them."""

    train: Rows
    val: Rows
    test: Rows


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
    if samples.weights is not None:
        _refuse_weightless(samples.weights, rows)
    if split.kind == "given" and samples.groups is not None and split.fold == 0:  # once for all folds
        _warn_of_leakage(samples.groups, split.by, rows)
    if samples.encoding is None:
        columns = plain_numbers(samples.features) if samples.x.ndim == 2 and not samples.tokens else None
        is_scaled = np.ones(samples.x.shape[1], bool)
    else:
        columns = fit(samples.x[rows.train], samples.encoding)
        inputs, is_scaled = inputs_of(columns)
        samples = replace(samples, x=expand(samples.x, columns, samples.encoding), features=inputs, encoding=None)
    return samples, _normalised(samples, rows, split.normalize, columns, is_scaled)


def assign(samples: Samples, split: Split) -> Assignment:
    """Return which rows are for training, validation and test. Raises ConfigError as `divide` does."""
    n = min(len(samples.x), split.max_samples or len(samples.x))
    order = np.random.default_rng(split.seed).permutation(len(samples.x))[:n]
    if samples.split is not None and split.kind != "given":
        raise ConfigError("split", f"is {split.kind}, but the data name their train and test samples; set split=given")
    rows = _KINDS[split.kind](samples, split, order)
    sizes = [len(part) for part in (rows.train, rows.val, rows.test)]
    if any(size < least for size, least in zip(sizes, _FEWEST, strict=True)):
        raise _too_few(n, *sizes)
    return rows if split.folds is None else _fold(samples, split, split.folds, rows)


def _random(samples: Samples, split: Split, order: Rows) -> Assignment:
    del samples
    n_train, n_val, _ = _sizes(len(order), split)
    return Assignment(*np.split(order, [n_train, n_train + n_val]))


def _stratified(samples: Samples, split: Split, order: Rows) -> Assignment:
    """Give each class the same share in each split."""
    from sklearn.model_selection import StratifiedShuffleSplit

    _, n_val, n_test = _sizes(len(order), split)
    n_least, least = _rarest_class(samples, order)
    fewest = min(n_val, n_test)
    if n_least < 3 or fewest < len(samples.classes):
        problem = f"class '{least}' has {n_least} samples, and each split needs one of each class"
        if n_least >= 3:
            problem = f"{len(samples.classes)} classes do not fit in the {fewest} samples of a split"
        raise ConfigError("split", f"is stratified, but {problem}; choose another option of split")

    def cut(rows: Rows, size: int) -> tuple[Rows, Rows]:
        splitter = StratifiedShuffleSplit(1, test_size=size, random_state=_state(split))
        try:
            kept, taken = next(splitter.split(rows, samples.y[rows]))
        except ValueError as error:  # val and test together leave too few of a class
            raise ConfigError("split", f"is stratified, but {error}; choose another option of split") from error
        return rows[kept], rows[taken]

    rest, test = cut(order, n_test)
    train, val = cut(rest, n_val)
    return Assignment(train, val, test)


def _grouped(samples: Samples, split: Split, order: Rows) -> Assignment:
    """Keep groups together. The shares are those of the groups."""
    if samples.groups is None:
        raise ConfigError("split.by", "is empty; name the column of a table whose equal cells stay together")
    n_groups = len(np.unique(samples.groups[order]))
    n_val, n_test = max(1, round(n_groups * split.val)), max(1, round(n_groups * split.test))
    if n_groups <= n_val + n_test:
        raise ConfigError("split.by", f"makes {n_groups} groups: too few for {n_val} in val, {n_test} in test and more")
    rest, test = _apart(samples.groups, split, order, n_test)
    train, val = _apart(samples.groups, split, rest, n_val)
    return Assignment(train, val, test)


def _apart(groups: NDArray, split: Split, rows: Rows, n_groups: int) -> tuple[Rows, Rows]:
    """Return the rows without those of some groups, and the rows of these groups. They are drawn at random."""
    from sklearn.model_selection import GroupShuffleSplit

    splitter = GroupShuffleSplit(1, test_size=n_groups, random_state=_state(split))
    kept, taken = next(splitter.split(rows, groups=groups[rows]))
    return rows[kept], rows[taken]


def _ordered(samples: Samples, split: Split, order: Rows) -> Assignment:
    """Take the first rows for training, then those for validation, then those for test."""
    order = np.sort(order)
    if split.by is not None:
        if samples.groups is None or samples.groups.dtype.kind in "OUS":
            what = "holds texts, which tell no order in time; name a column of numbers or of dates such as 2026-01-31"
            raise ConfigError("split.by", what)
        order = order[np.argsort(samples.groups[order], kind="stable")]
    return _random(samples, split, order)


def _given(samples: Samples, split: Split, order: Rows) -> Assignment:
    """Follow the words of the data. Without any for validation, draw that split from the training samples."""
    if samples.split is None:
        problem = "is empty; name the column of a table with the words train, val and test"
        raise ConfigError("split.column", f"{problem}, or set data.path={{train: ..., test: ...}}")
    words = samples.split[order]
    train, val, test = (order[words == part] for part in PARTS)
    for part, rows in (("train", train), ("test", test)):
        if not len(rows):
            raise ConfigError("split.column", f"no row is for {part}; split=given needs rows for train and for test")
    if not len(val):
        if samples.groups is None:
            train, val = np.split(train, [len(train) - round(len(train) * split.val)])
        else:
            n_groups = len(np.unique(samples.groups[train]))
            n_val = max(1, round(n_groups * split.val))
            if n_groups <= n_val:
                raise ConfigError("split.by", f"leaves {n_groups} groups to train on, of which val needs {n_val}")
            train, val = _apart(samples.groups, split, train, n_val)
    return Assignment(train, val, test)


def _warn_of_leakage(groups: NDArray, by: str | None, rows: Assignment) -> None:
    """Warn if a group is in more than one split."""
    parts = [np.unique(groups[part]) for part in (rows.train, rows.val, rows.test)]
    named, n_parts = np.unique(np.concatenate(parts), return_counts=True)
    shared = named[n_parts > 1]
    if len(shared):
        what = f"{len(shared)} groups, such as '{shared[0]}', are" if len(shared) > 1 else f"group '{shared[0]}' is"
        log.warning(
            "warning: %s: %s in more than one of train, val, test; the results may be too good",
            f"split.by={by}" if by else "split",
            what,
        )


_KINDS: dict[str, Callable[[Samples, Split, Rows], Assignment]] = {
    "random": _random,
    "stratified": _stratified,
    "grouped": _grouped,
    "ordered": _ordered,
    "given": _given,
}


def _fold(samples: Samples, split: Split, n_folds: int, rows: Assignment) -> Assignment:
    """Return the assignment with another validation split: one of the folds of all samples that are not for testing.

    With split=ordered, val follows the samples to train on, as in scikit-learn's TimeSeriesSplit.
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold, TimeSeriesSplit

    rest = np.concatenate([rows.train, rows.val])
    shuffled = {"shuffle": True, "random_state": _state(split)}
    labels = None
    if split.kind == "ordered":
        splitter, available, what = TimeSeriesSplit(n_folds), len(rest) - 1, "pairs of samples that follow each other"
    elif split.kind in ("grouped", "given") and samples.groups is not None:
        labels = samples.groups[rest]
        splitter, available, what = GroupKFold(n_folds, **shuffled), len(np.unique(labels)), "groups"
    elif split.kind == "stratified":
        available, least = _rarest_class(samples, rest)
        splitter, what = StratifiedKFold(n_folds, **shuffled), f"samples of class '{least}'"
    else:
        splitter, available, what = KFold(n_folds, **shuffled), len(rest), "samples"
    if n_folds > available:
        raise ConfigError("split.folds", f"is {n_folds}, more than the {available} {what} outside the test split")
    train, val = list(splitter.split(rest, samples.y[rest], labels))[split.fold]
    if len(train) < _FEWEST[0]:
        raise _too_few(len(rest) + len(rows.test), len(train), len(val), len(rows.test))
    return Assignment(rest[train], rest[val], rows.test)


def _sizes(n: int, split: Split) -> tuple[int, int, int]:
    """Return how many of `n` samples are for training, validation and test. Raises ConfigError if these are too few."""
    n_val, n_test = round(n * split.val), round(n * split.test)
    sizes = (n - n_val - n_test, n_val, n_test)
    if any(size < least for size, least in zip(sizes, _FEWEST, strict=True)):
        raise _too_few(n, *sizes)
    return sizes


def _too_few(n: int, n_train: int, n_val: int, n_test: int) -> ConfigError:
    return ConfigError(
        "split",
        f"{n} samples are too few: {n_train} to train, {n_val} to validate, {n_test} to test (needed: 2, 1, 1)",
    )


def _rarest_class(samples: Samples, rows: Rows) -> tuple[int, str]:
    """Return the number of samples of the rarest class, and its name. Raises ConfigError without classes."""
    if samples.y.ndim != 1 or samples.y.dtype.kind != "i":
        raise ConfigError("split", "is stratified, which needs classes; choose another option of split")
    found, counts = np.unique(samples.y[rows], return_counts=True)
    rarest = int(counts.argmin())
    return int(counts[rarest]), samples.classes[found[rarest]]


def _state(split: Split) -> int:
    """Return the seed for scikit-learn, which takes 32 bits."""
    return split.seed % 2**32


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


def _refuse_weightless(weights: NDArray[np.float32], rows: Assignment) -> None:
    for part in PARTS:
        if not weights[getattr(rows, part)].any():
            raise ConfigError("data.weight", f"holds no weight above 0 for the {part} split")


def _refuse_constant(samples: Samples, std: NDArray[np.float64]) -> None:
    constant = np.flatnonzero(std == 0)
    if len(constant):
        name = samples.features[int(constant[0])]
        raise ConfigError(
            "data.features",
            f"column '{name}' is constant over the training split; leave it out, or set split.normalize=false",
        )
