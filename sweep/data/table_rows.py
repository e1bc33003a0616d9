"""The columns of a table as numbers, categories, dates, classes and the like."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sweep.data.cells import DATE_PARTS, date_part
from sweep.data.cells import dates as dates_of
from sweep.data.cells import names as names_of
from sweep.data.csv_file import Dialect, shown
from sweep.data.encoding import Column, Encoding, Missing
from sweep.data.samples import PARTS
from sweep.utils.errors import ConfigError, one_line

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("sweep")

_NAMES_OF_INDICES = ("index", "id", "row", "rownames", "row_id", "level_0", "__index_level_0__")
_FOR_TEXTS: dict[str, str] = {  # what to do about texts, by key
    "data.target": "; for names of classes set task=classification",
    "data.features": "; for names of categories set data.categorical=auto or list it there, for dates list it in "
    "data.dates, or leave it out with data.drop",
}
_FOR_EMPTY: dict[str, str] = dict.fromkeys(  # what to do about empty cells, by key
    ("data.features", "data.categorical", "data.dates"),
    "; fill it with data.missing=median, most_frequent or indicator, or leave the column out with data.drop",
)
_FEWEST_TO_COUNT = 3  # rows that show whether a column counts: two numbers always have a constant step


@dataclass(frozen=True)
class TableRows:
    """A table.

    Attributes:
        frame: the cells. In a CSV file, a column of classes, categories or dates is text. `inputs` removes columns.
        place: returns in words where row i (from 0) is in the file.
        dialect: of the CSV file; None for Parquet.
        name: of the data set.
        source: the paths.
        split: for each row the word of its file, if there are several files.
        n_first: the number of rows of the first file.
    """

    frame: "pd.DataFrame"
    place: Callable[[int], str]
    dialect: Dialect | None
    name: str
    source: str
    n_first: int
    split: NDArray[np.str_] | None = None

    def column(self, name: str) -> "pd.Series":
        """Return a column by its name, which is there once."""
        column: Any = self.frame[name]
        return column

    def features(self, targets: Sequence[str], left_out: Sequence[str]) -> list[str]:
        """Return the other columns. Those that only number the rows are left out too, with a warning."""
        others = [str(name) for name in self.frame.columns if name not in targets and name not in left_out]
        kinds = {name: kind for name in others if (kind := self._kind_of_index(name)) is not None}
        kept = [name for name in others if name not in kinds]
        listed = ", ".join(f"'{shown(name)}' ({kind})" for name, kind in kinds.items())
        if kinds and not kept:
            raise ConfigError("data.features", f"no column is left but {listed}; to train with it, list it here")
        if kinds:
            them = "it" if len(kinds) == 1 else "them"
            log.warning(
                "warning: data.features: left out %s, which may tell the order of the rows; to train with %s, list %s",
                listed, them, them,
            )  # fmt: skip
        return kept

    def _kind_of_index(self, name: str) -> str | None:
        """Return why a column is taken for an index of the rows; None if it is not taken for one."""
        if name.startswith("Unnamed: ") or not name.strip():
            return "unnamed"
        column = self.column(name).iloc[: self.n_first]
        if column.dtype.kind not in "iuf" or len(column) < _FEWEST_TO_COUNT:
            return None
        values = column.to_numpy(np.float64, na_value=np.nan)
        if not np.all(np.isfinite(values)) or not np.all(values % 1 == 0):
            return None
        steps = np.diff(values)
        if steps[0] != 0 and np.all(steps == steps[0]):
            return "counts rows"
        return "grows from row to row" if name.lower() in _NAMES_OF_INDICES and np.all(steps > 0) else None

    def numbers(self, key: str, name: str, may_be_empty: bool = False) -> NDArray[np.float64]:
        """Return a column as numbers, (n,), NaN for an empty cell. Raises ConfigError for `key` if a cell is not finite
        in float32, or if it is empty unless `may_be_empty`."""
        import pandas as pd

        column = self.column(name)
        if column.dtype.kind in "mM":
            more = "; list it in data.dates, or leave it out with data.drop" if key == "data.features" else ""
            raise ConfigError(key, f"column '{shown(name)}' holds dates or durations, not numbers{more}")
        try:
            numbers = np.asarray(pd.to_numeric(column, errors="coerce"), dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ConfigError(key, f"column '{shown(name)}' holds no numbers ({one_line(error)})") from error
        is_bad = ~(np.abs(numbers) <= np.finfo(np.float32).max)  # NaN too
        if is_bad.any() and may_be_empty:
            is_bad &= ~column.isna().to_numpy()
        if is_bad.any():
            cell = column.iloc[int(is_bad.argmax())]
            what = f"is '{shown(cell)}', not a finite float32 number"
            if pd.isna(cell) is True:  # for a cell that holds a list, isna returns an array
                raise self._empty(key, name, is_bad)
            hint = self._way_to_numbers(str(cell))
            if not hint and isinstance(cell, str):
                hint = _FOR_TEXTS.get(key, "")
            raise self._bad(key, name, is_bad, what + self._count(is_bad) + hint)
        return numbers

    def _bad(self, key: str, name: str, is_bad: NDArray[np.bool_], what: str) -> ConfigError:
        """Return the error for the first of the bad cells of a column."""
        return ConfigError(key, f"{self.place(int(is_bad.argmax()))}, column '{shown(name)}' {what}")

    def _empty(self, key: str, name: str, is_empty: NDArray[np.bool_]) -> ConfigError:
        """Return the error for the empty cells of a column."""
        return self._bad(key, name, is_empty, f"is empty or NaN{self._count(is_empty)}{_FOR_EMPTY.get(key, '')}")

    @staticmethod
    def _count(is_bad: NDArray[np.bool_]) -> str:
        n = int(is_bad.sum())
        return f" ({n} such cells in the column)" if n > 1 else ""

    def inputs(
        self,
        names: Sequence[str],
        named: Sequence[str],
        is_auto: bool,
        formats: Mapping[str, str | None],
        missing: Missing,
        max_one_hot: int,
    ) -> dict[str, Any]:
        """Return the input columns as the arguments `x`, `features` and `encoding` of `Samples`.

        Each column is removed from the frame once it is read, since both together may not fit in memory.

        Args:
            names: of the columns.
            named: those that hold categories.
            is_auto: True takes columns of texts for categories too.
            formats: of the columns of dates; None for ISO 8601.
            missing: as for `table`.
            max_one_hot: as for `table`.
        """
        columns: list[Column] = []
        for name in names:
            if name in formats:
                columns += [Column(name, "date", part=part, format=formats[name]) for part in DATE_PARTS]
            else:
                is_category = name in named or (is_auto and self._holds_texts(name))
                columns.append(Column(name, "category" if is_category else "number"))
        x = np.empty((len(self.frame), len(columns)), order="F")
        for i, column in enumerate(columns):
            if column.kind == "category":
                x[:, i], values = self.categories(column.name, missing != "error")
                columns[i] = column = replace(column, values=values)
            elif column.kind == "date":
                x[:, i] = self.dates(column.name, column, missing != "error")
            else:
                x[:, i] = self.numbers("data.features", column.name, missing != "error")
            _refuse_one_value(column, x[:, i])
            if column.part in (None, DATE_PARTS[-1]):
                self.frame.pop(column.name)
        features = tuple(column.feature for column in columns)
        if all(column.kind == "number" for column in columns) and (missing == "error" or not np.isnan(x).any()):
            return {"x": x, "features": features}
        return {"x": x, "features": features, "encoding": Encoding(tuple(columns), missing, max_one_hot)}

    def _holds_texts(self, name: str) -> bool:
        """Return whether a column has cells that are no numbers. Warn if most of its cells are numbers."""
        import pandas as pd

        column = self.column(name)
        if column.dtype.kind != "O":
            return False
        is_filled = ~column.isna().to_numpy()
        try:
            numbers = np.asarray(pd.to_numeric(column, errors="coerce"), np.float64)
        except (TypeError, ValueError):
            return True
        is_text = is_filled & np.isnan(numbers)
        if 0 < is_text.sum() < is_filled.sum() / 2:
            row = int(is_text.argmax())
            log.warning(
                "warning: data.categorical: %s, column '%s' is '%s', while most of its cells are numbers; each is a "
                "category of its own", self.place(row), shown(name), shown(column.iloc[row]),
            )  # fmt: skip
        return bool(is_text.any())

    def _is_empty(self, column: "pd.Series") -> NDArray[np.bool_]:
        """Return which cells are empty. In a column of a CSV file that is read as text, blanks are empty too."""
        if self.dialect is None or column.dtype.kind != "O":
            return column.isna().to_numpy()
        return (column.isna() | column.str.strip().isin(["", *self.dialect.na_values])).to_numpy()

    def categories(self, name: str, may_be_empty: bool) -> tuple[NDArray[np.float64], tuple[str, ...]]:
        """Return a column as indices of categories, (n,), NaN for an empty cell; and their names, numbers first."""
        column = self.column(name)
        _refuse_lists("data.categorical", name, column)
        is_empty = self._is_empty(column)
        if is_empty.any() and not may_be_empty:
            raise self._empty("data.categorical", name, is_empty)
        texts = names_of(column.mask(is_empty))
        found = sorted({text for text in texts if text is not None}, key=lambda text: _order(text, _number(text)))
        index = {text: float(i) for i, text in enumerate(found)}
        return np.array([index.get(text, np.nan) for text in texts]), tuple(found)

    def dates(self, name: str, column: Column, may_be_empty: bool) -> NDArray[np.float64]:
        """Return a part of a column of dates as numbers, (n,), NaN for an empty cell."""
        cells = self.column(name)
        is_empty = self._is_empty(cells)
        parsed = dates_of(cells.mask(is_empty), column.format)
        is_bad = parsed.isna().to_numpy() & ~is_empty
        if is_bad.any():
            form = f"of the format {column.format}" if column.format else "in ISO 8601, such as 2026-01-31"
            way = f"; give its format, as in data.dates={{{shown(name)}: '%d.%m.%Y'}}"
            what = f"is '{shown(cells.iloc[int(is_bad.argmax())])}', no date {form}"
            raise self._bad("data.dates", name, is_bad, what + self._count(is_bad) + way)
        if is_empty.any() and not may_be_empty:
            raise self._empty("data.dates", name, is_empty)
        assert column.part is not None
        return date_part(parsed, column.part)

    def groups(self, name: str, form: str | None) -> NDArray:
        """Return a column for `Samples.groups`: numbers, dates if all of its cells are, or texts."""
        column = self.column(name)
        _refuse_lists("split.by", name, column)
        is_empty = self._is_empty(column)
        if is_empty.any():
            raise self._empty("split.by", name, is_empty)
        if column.dtype.kind in "iufb":
            return column.to_numpy()
        parsed = dates_of(column, form)
        return names_of(column) if parsed.isna().any() else parsed.to_numpy()

    def weights(self, name: str) -> NDArray[np.float32]:
        """Return a column of weights. Raises ConfigError if one is negative."""
        weights = self.numbers("data.weight", name)
        if (weights < 0).any():
            raise self._bad("data.weight", name, weights < 0, f"is {weights[(weights < 0).argmax()]:g}, below 0")
        return weights.astype(np.float32)

    def words(self, name: str) -> NDArray[np.str_]:
        """Return the column that says to which split each row belongs. Raises ConfigError for any other word."""
        column = self.column(name)
        is_other = ~column.isin(PARTS).to_numpy()
        if is_other.any():
            word = shown(column.iloc[int(is_other.argmax())])
            what = f"is '{word}', not train, val or test{self._count(is_other)}"
            raise self._bad("split.column", name, is_other, what)
        return column.to_numpy(np.str_)

    def _way_to_numbers(self, cell: str) -> str:
        """Return a hint for the message if the cell looks like a number with a decimal comma, else ""."""
        dialect = self.dialect
        if dialect is None or "," not in cell or not cell.replace(",", "", 1).strip().lstrip("+-").isdecimal():
            return ""
        return f"; for commas before decimals set {dialect.override(decimal=',')}" if dialect.sep != "," else ""

    def classes(self, name: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return a column as class indices, (n,), and the classes' names. Raises ConfigError for data.target."""
        import pandas as pd

        column, place = self.column(name), f"column '{shown(name)}'"
        _refuse_lists("data.target", name, column)
        is_empty = self._is_empty(column)
        if is_empty.any():
            raise self._bad("data.target", name, is_empty, f"is empty{self._count(is_empty)}")
        codes, found = pd.factorize(column)
        values = list(found)
        numbers = [_number(value) for value in values]
        whole = [number for number in numbers if number is not None and number % 1 == 0]
        if len(whole) < len(values) and not any(number is None for number in numbers):
            raise ConfigError("data.target", f"{place} holds fractions, not classes; set task=regression")
        if 0 < len(whole) < len(values):
            odd = next(value for value, number in zip(values, numbers, strict=True) if number is None)
            row = int(np.flatnonzero(codes == values.index(odd))[0])
            log.warning(
                "warning: data.target: %s holds numbers and texts, such as '%s' in %s; each is a class of its own",
                place, shown(odd), self.place(row),
            )  # fmt: skip
        merged = values if len(whole) < len(values) else numbers  # 1, 1.0 and 01 are the same number
        keys = sorted(set(merged), key=lambda value: _order(value, _number(value)))
        index = {value: i for i, value in enumerate(keys)}
        if len(keys) < 2:
            raise ConfigError("data.target", f"{place} holds one class only, '{shown(values[0])}'")
        names = {index[m]: str(value) for value, m in reversed(list(zip(values, merged, strict=True)))}
        _warn_of_twins(place, [names[i] for i in range(len(keys))])
        return np.array([index[m] for m in merged])[codes], tuple(names[i] for i in range(len(keys)))


def _refuse_lists(key: str, name: str, column: "pd.Series") -> None:
    if column.dtype.kind in "O" and any(isinstance(cell, list | dict | np.ndarray) for cell in column):
        raise ConfigError(key, f"column '{shown(name)}' holds lists, which cannot be classes")


def _refuse_one_value(column: Column, cells: NDArray[np.float64]) -> None:
    """Raise ConfigError if all cells have the same value, or if all are empty. Parts of dates may be equal."""
    lowest, highest = np.fmin.reduce(cells), np.fmax.reduce(cells)
    if np.isnan(lowest):
        raise ConfigError("data.features", f"column '{shown(column.name)}' is empty; leave it out")
    if column.kind != "date" and len(cells) > 1 and lowest == highest and not np.isnan(cells).any():
        value = shown(column.values[0]) if column.values else f"{lowest:g}"
        raise ConfigError("data.features", f"column '{shown(column.name)}' is constant ({value}); leave it out")


def _number(value: object) -> float | int | None:
    """Return the number that a class's name stands for, or None. True, False, NaN and inf do not count as numbers."""
    if isinstance(value, bool | np.bool_) or "_" in str(value):
        return None
    if isinstance(value, int | np.integer):
        return int(value)
    try:
        text = str(value).strip()
        return int(text) if text.lstrip("+-").isascii() and text.lstrip("+-").isdigit() else _finite(float(text))
    except ValueError:
        return None


def _finite(number: float) -> float | None:
    return number if np.isfinite(number) else None


def _order(value: object, number: float | int | None) -> tuple[bool, float | int, str]:
    """Return the sort key of a class: numbers first by value, then names."""
    return (number is None, number or 0, str(value))


def _warn_of_twins(place: str, names: Sequence[str]) -> None:
    """Warn if two classes differ only in white space or capitals: probably they are meant to be one."""
    seen: dict[str, str] = {}
    for name in names:
        twin = seen.setdefault(" ".join(name.split()).casefold(), name)
        if twin != name:
            log.warning(
                "warning: data.target: %s has the classes '%s' and '%s', which differ only in blanks or capitals",
                place, shown(twin), shown(name),
            )  # fmt: skip


def require_columns(frame: "pd.DataFrame", key: str, names: Sequence[str]) -> None:
    """Raise ConfigError for `key` unless the table has all columns."""
    for name in names:
        if name not in frame.columns:
            raise ConfigError(key, f"no column '{shown(name)}'; the columns are: {listed(frame.columns)}")


def listed(names: Any) -> str:
    """Return the names in a line: all of up to 50, else the first 50 and how many more there are."""
    texts = [shown(name) for name in names]
    return ", ".join(texts) if len(texts) <= 50 else f"{', '.join(texts[:50])} and {len(texts) - 50} more"
