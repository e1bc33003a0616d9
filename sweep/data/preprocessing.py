"""New data as a model's inputs: `Splits.preprocessing`, which is plain data, applied."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sweep.data.cells import DATE_PARTS, date_part, dates, names
from sweep.data.encoding import EMPTY, Learnt, encoded, positions_of
from sweep.utils.errors import ConfigError, one_line

if TYPE_CHECKING:
    import pandas as pd

_IS_EMPTY = "is empty; the model was trained without empty cells"
_COUNTS = "they count as none of its categories"
_UNKNOWN = "(a name that the training split did not have)"


def apply(
    preprocessing: Mapping[str, Any], data: "pd.DataFrame | NDArray", warn: Callable[[str], None] | None = None
) -> NDArray[np.float32]:
    """Return the inputs, (n, *in_shape), of data in their own units, as in training.

    A category that the training split did not have is 0 in all its inputs, or the code -1.

    Args:
        preprocessing: `Splits.preprocessing` of the training; it may have been stored and loaded.
        data: a table with the columns that the model was trained on, in any order; or an array (n, *in_shape) for
            images, and (n, n_columns) for tables whose columns are all numbers, in the order of training.
        warn: called with one line for each column that has categories which the training split did not have.

    Raises:
        ConfigError: a column is missing, or a cell cannot be used; the key names the column.
    """
    columns = preprocessing["columns"]
    if columns is None or isinstance(data, np.ndarray):
        x = _array(preprocessing, np.asarray(data))
    else:
        x = np.column_stack([encoded(_cells(data, learnt, warn), learnt) for learnt in columns])
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean, std = (np.array(preprocessing[name]).reshape(shape) for name in ("mean", "std"))
    return ((x - mean) / std).astype(np.float32)


def _array(preprocessing: Mapping[str, Any], data: NDArray) -> NDArray:
    """Return the inputs of an array, whose columns are in the order of training.

    Raises ConfigError if the model needs a table instead, or if the array cannot be used.
    """
    columns = preprocessing["columns"]
    if columns is not None and any(one["kind"] != "number" for one in columns):
        raise ConfigError("data", "the model was trained on a table with texts or dates; give a DataFrame")
    n_columns = len(preprocessing["mean"]) if columns is None else len(columns)
    if data.ndim < 2 or data.shape[1] != n_columns:
        raise ConfigError("data", f"must have a row for each sample and {n_columns} columns, got shape {data.shape}")
    try:
        data = data if data.dtype == np.float32 else data.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError("data", f"must hold numbers ({one_line(error)})") from error
    may_be_nan = np.array([columns is not None and one["fill"] is not None for one in columns or [{}] * n_columns])
    is_bad = ~np.isfinite(data)
    is_bad &= ~(np.isnan(data) & may_be_nan.reshape(1, -1, *[1] * (data.ndim - 2)))
    if is_bad.any():
        row, column, *_ = np.argwhere(is_bad)[0]
        raise ConfigError("data", f"holds a value that is not finite, in row {row}, column {column}")
    if columns is None or not may_be_nan.any():
        return data
    return np.column_stack([encoded(data[:, i], learnt) for i, learnt in enumerate(columns)])


def _cells(frame: "pd.DataFrame", learnt: Learnt, warn: Callable[[str], None] | None) -> NDArray:
    """Return a column as `encoded` takes it. Raises ConfigError if it is missing, or a cell cannot be used."""
    import pandas as pd

    name = learnt["name"]
    if name not in frame.columns:
        raise ConfigError(name, "the data have no such column")
    column: Any = frame[name]
    if "categories" in learnt:
        found, positions = names(column), positions_of(learnt)
        if learnt["fill"] is None:
            _refuse(
                column,
                np.array([text is None for text in found], bool),
                _IS_EMPTY,
            )
        cells = np.array([positions.get(learnt["fill"] if text is None else text, -1) for text in found], np.int64)
        if warn is not None and len(unknown := np.flatnonzero(cells < 0)):
            which = f"'{column.iloc[int(unknown[0])]}' in row {int(unknown[0])}"
            warn(f"{name}: {len(unknown)} of {len(cells)} cells are unknown to the model, such as {which}; {_COUNTS}")
        return cells
    is_empty = column.isna().to_numpy()
    if learnt["kind"] == "date":
        parsed = dates(column, learnt["format"])
        cells, what = date_part(parsed, learnt["part"]), "is no date"
    else:
        cells, what = np.asarray(pd.to_numeric(column, errors="coerce"), np.float64), "is no finite number"
    _refuse(column, ~np.isfinite(cells) & ~is_empty, what)
    if learnt["fill"] is None:
        _refuse(column, is_empty, _IS_EMPTY)
    return cells


def _refuse(column: "pd.Series", is_bad: NDArray[np.bool_], what: str) -> None:
    """Raise ConfigError for the first bad cell, if there is one."""
    if len(bad := np.flatnonzero(is_bad)):
        cell = column.iloc[int(bad[0])]
        raise ConfigError(str(column.name), f"'{cell}' in row {int(bad[0])} {what}")


def table_of(preprocessing: Mapping[str, Any], x: NDArray) -> dict[str, list[Any]]:
    """Return the cells of a table that has these inputs, by column: numbers, texts, and None for an empty cell.

    A date without its days becomes 1970-01-01. Cells that were filled stay filled, unless an indicator shows them.

    Args:
        preprocessing: as for `apply`; its columns are known.
        x: (n, n_inputs), in their own units.
    """
    cells: dict[str, list[Any]] = {}
    place = 0
    for one in preprocessing["columns"]:
        name, width = one["name"], len(one["categories"]) if one["kind"] == "one_hot" else 1
        block, place = x[:, place : place + width], place + width
        if "categories" in one:
            position = block.argmax(axis=1) if one["kind"] == "one_hot" else block[:, 0].astype(int)
            if one["kind"] == "one_hot":
                position[~block.any(axis=1)] = -1
            values = [one["categories"][i] if i >= 0 else _UNKNOWN for i in position]
            cells[name] = [None if value == EMPTY else value for value in values]
        elif one["kind"] == "number":
            cells[name] = block[:, 0].tolist()
        elif one["part"] == DATE_PARTS[0]:
            cells[name] = [_date(float(days), one["format"]) for days in block[:, 0]]
        else:
            cells.setdefault(name, [_date(0.0, one["format"])] * len(x))
        if one.get("indicator"):
            is_empty, place = x[:, place] == 1, place + 1
            cells[name] = [None if empty else cell for cell, empty in zip(cells[name], is_empty, strict=True)]
    return cells


def _date(days: float, form: str | None) -> str:
    """Return a date as text, of the format that dates have in the table. days: since 1970-01-01."""
    moment = datetime(1970, 1, 1) + timedelta(days=days)
    return moment.isoformat(timespec="seconds") if form is None else moment.strftime(form)
