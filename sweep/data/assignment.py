"""Which rows of the samples are for training, validation and test."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweep.config.nodes import Split
from sweep.data.samples import PARTS, Samples
from sweep.utils.errors import ConfigError

log = logging.getLogger("sweep")

_FEWEST = (2, 1, 1)  # samples in each split

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Assignment:
    """The rows of each split, (n,) each, in the order in which the split holds them."""

    train: Rows
    val: Rows
    test: Rows


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


def check(samples: Samples, split: Split, rows: Assignment) -> None:
    """Raise ConfigError if all samples of a split have the weight 0. Warn if a given split divides a group."""
    if samples.weights is not None:
        _refuse_weightless(samples.weights, rows)
    if split.kind == "given" and samples.groups is not None and split.fold == 0:  # once for all folds
        _warn_of_leakage(samples.groups, split.by, rows)


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


def _refuse_weightless(weights: NDArray[np.float32], rows: Assignment) -> None:
    for part in PARTS:
        if not weights[getattr(rows, part)].any():
            raise ConfigError("data.weight", f"holds no weight above 0 for the {part} split")
