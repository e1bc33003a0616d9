"""From the columns of a table to a model's inputs: what is learnt from the rows to train on, and its application.

What is learnt is a list of dicts of numbers, texts and lists, one for each column of `Samples.x`, so that it can be
stored beside a model's weights:

- `name`: the column of the table; `kind`: number, date, one_hot or code.
- numbers and dates: `fill`, the number in place of an empty cell, or None if empty cells are refused; `indicator`,
  whether a second input is 1 where the cell was empty. Dates: `part`, one of `sweep.data.cells.DATE_PARTS`; `format`.
- one_hot and code: `categories`, the names in the order of the inputs, or of the code from 0; `fill`, the name in place
  of an empty cell, or None. A name that is not among them is 0 in all inputs of one_hot, and the code -1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sweep.utils.errors import ConfigError

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer

Missing = Literal["error", "median", "most_frequent", "indicator"]
Learnt = dict[str, Any]  # of one column, see above

EMPTY = "(empty)"  # the category of empty cells with data.missing=indicator
_EMPTY_CODE = -1.0  # its code in `Samples.x`; it has no name among a column's `values`
_UNKNOWN = -1  # the position of a category that is not among those to train on


@dataclass(frozen=True)
class Column:
    """A column of `Samples.x`: numbers, one part of dates as numbers, or categories as indices of their names.

    An empty cell is NaN.

    Attributes:
        name: the column of the table.
        kind: what it holds.
        values: all names of the categories, by index.
        part: of the dates, one of `sweep.data.cells.DATE_PARTS`.
        format: of the dates; None for ISO 8601.
    """

    name: str
    kind: Literal["number", "date", "category"] = "number"
    values: tuple[str, ...] = ()
    part: str | None = None
    format: str | None = None

    @property
    def feature(self) -> str:
        """The name of the input, such as "day.month"."""
        return self.name if self.part is None else f"{self.name}.{self.part}"


@dataclass(frozen=True)
class Encoding:
    """How the columns of a table become inputs.

    Attributes:
        columns: those of `Samples.x`.
        missing: what takes the place of an empty cell.
        max_one_hot: a column with more categories among the samples to train on becomes one code.
    """

    columns: tuple[Column, ...]
    missing: Missing
    max_one_hot: int


def plain_numbers(names: Sequence[str]) -> list[Learnt]:
    """Return what is learnt of columns that are inputs already."""
    return [{"name": name, "kind": "number", "fill": None, "indicator": False} for name in names]


def fit(x: NDArray[np.floating], encoding: Encoding) -> list[Learnt]:
    """Learn how to encode the columns of x, (n, n_columns), from its rows.

    Parts of dates that are equal in all rows are left out. Raises ConfigError if a column has no cell that is not
    empty.
    """
    for column, cells in zip(encoding.columns, x.T, strict=True):
        if np.isnan(cells).all():
            problem = f"column '{column.name}' has no cell to train on that is not empty"
            raise ConfigError("data.missing", f"{problem}; leave the column out with data.drop")
    kept = [
        i
        for i, (column, cells) in enumerate(zip(encoding.columns, x.T, strict=True))
        if column.kind != "date" or np.nanmin(cells) < np.nanmax(cells)
    ]
    return _described(fitted(x, encoding, kept), encoding, kept)


def fitted(x: NDArray[np.floating], encoding: Encoding, kept: Sequence[int]) -> "ColumnTransformer":
    """Return scikit-learn's transformer of the `kept` columns, fitted on the rows of x."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    missing = encoding.missing
    fills_numbers: Any = "passthrough"
    fills_names: Any = "passthrough"
    if missing != "error":
        strategy = "most_frequent" if missing == "most_frequent" else "median"
        fills_numbers = SimpleImputer(strategy=strategy, add_indicator=missing == "indicator")
        strategy = "constant" if missing == "indicator" else "most_frequent"
        fills_names = SimpleImputer(strategy=strategy, fill_value=_EMPTY_CODE)
    numbers = [i for i in kept if encoding.columns[i].kind != "category"]
    n_names = {i: _n_categories(x[:, i], missing) for i in kept if i not in numbers}
    one_hot = [i for i, n in n_names.items() if n <= encoding.max_one_hot]
    codes = [i for i, n in n_names.items() if n > encoding.max_one_hot]
    as_one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    as_code = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=_UNKNOWN)
    transformers: list[tuple[str, Any, list[int]]] = [
        ("number", fills_numbers, numbers),
        ("one_hot", Pipeline([("fill", fills_names), ("encode", as_one_hot)]), one_hot),
        ("code", Pipeline([("fill", fills_names), ("encode", as_code)]), codes),
    ]
    return ColumnTransformer([named for named in transformers if named[2]]).fit(x)


def _n_categories(cells: NDArray[np.floating], missing: Missing) -> int:
    """Return the number of categories, with that of empty cells if they have their own."""
    is_empty = np.isnan(cells)
    return len(np.unique(cells[~is_empty])) + (missing == "indicator" and bool(is_empty.any()))


def _described(transformer: "ColumnTransformer", encoding: Encoding, kept: Sequence[int]) -> list[Learnt]:
    """Return what the transformer has learnt of each of the `kept` columns."""
    found: dict[int, Learnt] = {}
    for kind, step, places in transformer.transformers_:
        if kind == "remainder":  # the columns that are left out
            continue
        fill, encode = (step, None) if kind == "number" else step.named_steps.values()
        fills = getattr(fill, "statistics_", [None] * len(places))
        empty = getattr(getattr(fill, "indicator_", None), "features_", ())
        for k, i in enumerate(places):
            column = encoding.columns[i]
            if encode is None:
                has_indicator = k in empty and column.part in (None, "days")  # one for all parts of a date
                value = None if fills[k] is None else float(fills[k])
                found[i] = {"name": column.name, "kind": column.kind, "fill": value, "indicator": bool(has_indicator)}
                if column.part is not None:
                    found[i] |= {"part": column.part, "format": column.format}
            else:
                names = [_name_of(code, column) for code in encode.categories_[k]]
                value = None if fills[k] is None else _name_of(fills[k], column)
                found[i] = {"name": column.name, "kind": kind, "fill": value, "categories": names}
    return [found[i] for i in kept]


def _name_of(code: float, column: Column) -> str:
    return EMPTY if code == _EMPTY_CODE else column.values[int(code)]


def inputs_of(learnt: Sequence[Learnt]) -> tuple[tuple[str, ...], NDArray[np.bool_]]:
    """Return the names of the inputs, and for each whether it is to be normalised: those that are 0 or 1 are not."""
    names: list[tuple[str, bool]] = []
    for one in learnt:
        feature = f"{one['name']}.{one['part']}" if one["kind"] == "date" else one["name"]
        if one["kind"] == "one_hot":
            names += [(f"{feature}={name}", False) for name in one["categories"]]
        else:
            names.append((feature, True))
        if one.get("indicator"):
            names.append((f"{one['name']} is empty", False))
    return tuple(name for name, _ in names), np.array([is_scaled for _, is_scaled in names], bool)


def expand(x: NDArray[np.floating], learnt: Sequence[Learnt], encoding: Encoding) -> NDArray[np.float64]:
    """Return the inputs, (n, n_inputs), of the columns of `Samples.x`, (n, n_columns)."""
    places = {(column.name, column.part): i for i, column in enumerate(encoding.columns)}
    inputs = np.empty((len(x), len(inputs_of(learnt)[0])), order="F")
    end = 0
    for one in learnt:
        i = places[one["name"], one.get("part")]
        cells = x[:, i]
        if "categories" in one:
            position = positions_of(one)
            codes = np.array([position.get(name, _UNKNOWN) for name in encoding.columns[i].values], np.int64)
            is_empty = np.isnan(cells)
            cells = codes[np.where(is_empty, 0, cells).astype(np.int64)]
            cells[is_empty] = position.get(one["fill"], _UNKNOWN)
        block = encoded(cells, one)
        inputs[:, end : end + block.shape[1]] = block
        end += block.shape[1]
    return inputs


def positions_of(learnt: Learnt) -> Mapping[str | None, int]:
    """Return the position of each category among those of the rows to train on."""
    return {name: i for i, name in enumerate(learnt["categories"])}


def encoded(cells: NDArray, learnt: Learnt) -> NDArray[np.float64]:
    """Return the inputs of one column, (n, n_inputs).

    Args:
        cells: numbers, NaN where the cell is empty; or positions of categories, -1 for one that is not known.
        learnt: of the column.
    """
    if learnt["kind"] == "one_hot":
        return (cells[:, None] == np.arange(len(learnt["categories"]))).astype(np.float64)
    cells = cells.astype(np.float64)
    if learnt["kind"] == "code" or learnt["fill"] is None:
        return cells[:, None]
    is_empty = np.isnan(cells)
    filled = np.where(is_empty, learnt["fill"], cells)
    return np.column_stack([filled, is_empty]) if learnt["indicator"] else filled[:, None]
