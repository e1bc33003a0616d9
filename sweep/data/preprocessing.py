"""New data as a model's inputs: `Splits.preprocessing`, which is plain data, applied."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sweep.data.cells import date_part, dates, names
from sweep.data.encoding import Learnt, encoded, positions_of
from sweep.utils.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

_IS_EMPTY = "is empty; the model was trained without empty cells"


def apply(preprocessing: Mapping[str, Any], data: "pd.DataFrame | NDArray") -> NDArray[np.float32]:
    """Return the inputs, (n, *in_shape), of data in their own units, as in training.

    A category that the training split did not have is 0 in all its inputs, or the code -1.

    Args:
        preprocessing: `Splits.preprocessing` of the training; it may have been stored and loaded.
        data: a table with the columns that the model was trained on, in any order; or an array (n, *in_shape) for
            images and for tables that hold numbers only.

    Raises:
        ConfigError: a column is missing, or a cell cannot be used; the key names the column.
    """
    columns = preprocessing["columns"]
    if columns is None or isinstance(data, np.ndarray):
        x = _array(preprocessing, np.asarray(data))
    else:
        x = np.column_stack([encoded(_cells(data, learnt), learnt) for learnt in columns])
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean, std = (np.array(preprocessing[name]).reshape(shape) for name in ("mean", "std"))
    return ((x - mean) / std).astype(np.float32)


def _array(preprocessing: Mapping[str, Any], data: NDArray) -> NDArray:
    """Return data that are inputs already. Raises ConfigError if the model needs a table instead."""
    columns, n_inputs = preprocessing["columns"], len(preprocessing["mean"])
    if columns is not None and any(one["kind"] != "number" or one["fill"] is not None for one in columns):
        raise ConfigError("data", "the model was trained on a table with texts, dates or empty cells; give a DataFrame")
    if data.ndim < 2 or data.shape[1] != n_inputs:
        raise ConfigError("data", f"must have a row for each sample and {n_inputs} columns, got shape {data.shape}")
    return data


def _cells(frame: "pd.DataFrame", learnt: Learnt) -> NDArray:
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
        return np.array([positions.get(learnt["fill"] if text is None else text, -1) for text in found], np.int64)
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
