"""Your own table, from CSV or Parquet."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sweep.data.csv_file import shown
from sweep.data.encoding import Missing
from sweep.data.samples import Samples, TaskName
from sweep.data.table_file import read_table
from sweep.data.table_rows import listed, require_columns
from sweep.utils.errors import ConfigError, one_of

if TYPE_CHECKING:
    import pandas as pd


def table(
    path: str | Mapping[str, str],
    target: str | Sequence[str],
    features: Sequence[str] | None = None,
    task: TaskName = "regression",
    read: Mapping[str, Any] | None = None,
    drop: Sequence[str] | None = None,
    categorical: str | Sequence[str] | None = None,
    max_one_hot: int = 32,
    missing: Missing = "error",
    dates: Sequence[str] | Mapping[str, str] | None = None,
    weight: str | None = None,
    split_by: str | None = None,
    split_column: str | None = None,
) -> Samples:
    """Read a table.

    Args:
        path: ends in .parquet or .pq for a Parquet file; any other file is read as CSV with a header line. Or such
            paths by the words train, val (which may be left out) and test, for split=given.
        target: the column to predict, or several for regression and multilabel.
        features: the input columns. By default, all columns except the targets, those that only number the rows, and
            those that are named in `drop`, `weight`, `split_by` or `split_column`. These columns number the rows:
            unnamed columns, and whole numbers that change by the same step from row to row, or that only grow in a
            column with a name such as "id". A warning names the columns that are left out.
        task: regression, classification or multilabel. With classification, the target's cells are names or numbers of
            classes. The classes are indexed in sorted order, numbers first. With multilabel, all cells are 0 or 1.
        read: how the CSV file is written, see `Dialect`.
        drop: columns to leave out.
        categorical: columns whose cells are names of categories; "auto" for all input columns that hold texts.
        max_one_hot: a column with at most so many categories becomes one input for each. Any other becomes one input:
            the position of the category in sorted order.
        missing: what to do with empty cells in input columns. "error" refuses them; "median" puts the column's median
            in their place, or for categories the most frequent one; "most_frequent" puts the most frequent value;
            "indicator" does as "median" and adds an input that is 1 where a cell was empty, or for categories makes
            empty cells a category of their own.
        dates: columns of dates, which become numbers: days since 1970, month, weekday and hour. Texts are in ISO 8601,
            such as 2026-01-31; for others, map each column to its format, such as {day: "%d.%m.%Y"}.
        weight: the column of the samples' weights.
        split_by: the column of `Samples.groups`.
        split_column: the column of `Samples.split`.

    Raises:
        ConfigError: the file, a column or a cell cannot be used. For a cell, the message gives its column and its line
            (of a CSV file, from 1) or row (of a Parquet file, from 1).
    """
    targets = [target] if isinstance(target, str) else list(target)
    if not targets:
        raise ConfigError("data.target", "is empty; name the column to predict")
    one_of("data.task", task, ("regression", "classification", "multilabel"))
    if task == "classification" and len(targets) > 1:
        raise ConfigError("data.target", "takes one column for classification; give one, or set task=multilabel")
    if max_one_hot < 0:
        raise ConfigError("data.max_one_hot", f"must be a number of categories >= 0, got {max_one_hot}")
    formats: dict[str, str | None] = dict.fromkeys(dates or ())
    formats |= dates if isinstance(dates, Mapping) else {}
    named = [] if categorical in (None, "auto") else _list("data.categorical", categorical)
    as_text = [*(targets if task == "classification" else []), *named, *formats]
    rows = read_table(path, read, targets, as_text)
    require_columns(rows.frame, "data.target", targets)
    apart = {"data.weight": weight, "split.by": split_by, "split.column": split_column}
    for key, name in apart.items():
        require_columns(rows.frame, key, [] if name is None else [name])
        if name in targets:
            raise ConfigError(key, f"'{shown(name)}' is a target too")
    dropped = _list("data.drop", drop or ())
    require_columns(rows.frame, "data.drop", dropped)
    left_out = [*dropped, *(name for name in apart.values() if name is not None and name not in as_text)]
    inputs = rows.features(targets, left_out) if features is None else list(features)
    _check_inputs(rows.frame, inputs, targets)
    if weight in inputs:
        raise ConfigError("data.weight", f"'{shown(weight)}' is a feature too; name it in data.weight only")
    if both := [name for name in inputs if name in dropped]:
        raise ConfigError("data.drop", f"'{shown(both[0])}' is in data.features too; leave it out of one of them")
    for key, names in (("data.categorical", named), ("data.dates", list(formats))):
        require_columns(rows.frame, key, names)
        if other := [name for name in names if name not in inputs]:
            raise ConfigError(key, f"'{shown(other[0])}' is no feature; leave it out here, or list it in data.features")
    if both := [name for name in named if name in formats]:
        raise ConfigError("data.categorical", f"'{shown(both[0])}' is in data.dates too; leave it out of one of them")
    if task == "classification":
        y, classes = rows.classes(targets[0])
    else:
        y, classes = np.column_stack([rows.numbers("data.target", t) for t in targets]), ()
    if task == "multilabel":
        y, classes = _labels(y, targets)
    return Samples(
        name=rows.name,
        task=task,
        y=y,
        classes=classes,
        source=rows.source,
        groups=None if split_by is None else rows.groups(split_by, formats.get(split_by)),
        weights=None if weight is None else rows.weights(weight),
        split=rows.split if split_column is None else rows.words(split_column),
        **rows.inputs(inputs, named, categorical == "auto", formats, missing, max_one_hot),
    )


def _labels(y: NDArray, targets: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return labels and their names. Raises ConfigError for a cell that is neither 0 nor 1."""
    odd = np.argwhere((y != 0) & (y != 1))
    if len(odd):
        row, column = odd[0]
        message = f"column '{shown(targets[column])}' holds {y[row, column]:g}; labels must be 0 or 1"
        raise ConfigError("data.target", message)
    return y.astype(np.int64), tuple(targets)


def _check_inputs(frame: "pd.DataFrame", inputs: Sequence[str], targets: Sequence[str]) -> None:
    """Raise ConfigError unless the inputs are columns, each once, and no targets."""
    for key, names in (("data.target", targets), ("data.features", inputs)):
        if len(set(names)) < len(names):
            raise ConfigError(key, f"names a column twice: {', '.join(map(shown, names))}")
    require_columns(frame, "data.features", inputs)
    if not inputs:
        raise ConfigError("data.features", f"is empty; choose from: {listed(frame.columns)}")
    if both := [name for name in inputs if name in targets]:
        raise ConfigError("data.features", f"'{shown(both[0])}' is a target too; leave it out of one of them")


def _list(key: str, names: Any) -> list[str]:
    """Return the names as a list. Raises ConfigError for a text, which would be read letter by letter."""
    if isinstance(names, str):
        raise ConfigError(key, f"must be a list of columns, such as [{names}], got '{names}'")
    return list(names)
