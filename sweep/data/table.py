"""Your own table, from CSV or Parquet."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sweep.data.csv_file import CsvFile, Dialect, shown
from sweep.data.samples import Samples, TaskName
from sweep.utils.errors import ConfigError, one_line

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("sweep")

_PARQUET = (".parquet", ".pq")
_NAMES_OF_INDICES = ("index", "id", "row", "rownames", "row_id", "level_0", "__index_level_0__")
_FEWEST_TO_COUNT = 3  # rows that show whether a column counts: two numbers always have a constant step


def table(
    path: str,
    target: str | Sequence[str],
    features: Sequence[str] | None = None,
    task: TaskName = "regression",
    read: Mapping[str, Any] | None = None,
) -> Samples:
    """Read a table.

    Args:
        path: ends in .parquet or .pq for a Parquet file; any other file is read as CSV with a header line.
        target: the column to predict, or several for regression.
        features: the input columns. By default, all columns except the targets and those that only number the rows:
            unnamed columns, and whole numbers that change by the same step from row to row, or that only grow in a
            column with a name such as "id". A warning names the columns that are left out.
        task: with classification, the target's cells are names or numbers of classes. The classes are indexed in sorted
            order, numbers first.
        read: how the CSV file is written, see `Dialect`.

    Raises:
        ConfigError: the file, a column or a cell cannot be used. For a cell, the message gives its column and its line
            (of a CSV file, from 1) or row (of a Parquet file, from 1).
    """
    targets = [target] if isinstance(target, str) else list(target)
    if not targets:
        raise ConfigError("data.target", "is empty; name the column to predict")
    if task == "classification" and len(targets) > 1:
        raise ConfigError("data.target", "classification takes one column; give one, or set data.task=regression")
    path = os.path.expanduser(path)
    rows = _read(Path(path), read, targets, as_text=targets if task == "classification" else [])
    _require_columns(rows.frame, "data.target", targets)
    inputs = rows.features(targets) if features is None else list(features)
    for key, names in (("data.target", targets), ("data.features", inputs)):
        if len(set(names)) < len(names):
            raise ConfigError(key, f"names a column twice: {', '.join(map(shown, names))}")
    _require_columns(rows.frame, "data.features", inputs)
    if not inputs:
        raise ConfigError("data.features", f"is empty; choose from: {_listed(rows.frame.columns)}")
    if both := [name for name in inputs if name in targets]:
        raise ConfigError("data.features", f"'{shown(both[0])}' is a target too; leave it out of one of them")
    x = np.column_stack([rows.numbers("data.features", name) for name in inputs])
    for name, column in zip(inputs, x.T, strict=True):
        if len(column) > 1 and np.ptp(column) == 0:
            raise ConfigError("data.features", f"column '{shown(name)}' is constant ({column[0]:g}); leave it out")
    if task == "classification":
        y, classes = rows.classes(targets[0])
    else:
        y, classes = np.column_stack([rows.numbers("data.target", t) for t in targets]), ()
    source = str(Path(path).resolve())
    name = Path(path).stem
    return Samples(name=name, task=task, x=x, y=y, features=tuple(inputs), classes=classes, source=source)


@dataclass(frozen=True)
class _Rows:
    """A table.

    Attributes:
        frame: the cells. In a CSV file, a column of classes is text.
        place: returns in words where row i (from 0) is in the file.
        dialect: of the CSV file; None for Parquet.
    """

    frame: "pd.DataFrame"
    place: Callable[[int], str]
    dialect: Dialect | None

    def features(self, targets: Sequence[str]) -> list[str]:
        """Return the columns other than the targets. Those that only number the rows are left out, with a warning."""
        others = [str(name) for name in self.frame.columns if name not in targets]
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
        column = self.frame[name]
        if column.dtype.kind not in "iuf" or len(column) < _FEWEST_TO_COUNT:
            return None
        values = column.to_numpy(np.float64, na_value=np.nan)
        if not np.all(np.isfinite(values)) or not np.all(values % 1 == 0):
            return None
        steps = np.diff(values)
        if steps[0] != 0 and np.all(steps == steps[0]):
            return "counts rows"
        return "grows from row to row" if name.lower() in _NAMES_OF_INDICES and np.all(steps > 0) else None

    def numbers(self, key: str, name: str) -> NDArray[np.float64]:
        """Return a column as numbers, (n,). Raises ConfigError for `key` if a cell is not a finite float32 number."""
        import pandas as pd

        column = self.frame[name]
        if column.dtype.kind in "mM":
            raise ConfigError(
                key, f"column '{shown(name)}' holds dates or durations; turn them into numbers, or leave it out"
            )
        try:
            numbers = np.asarray(pd.to_numeric(column, errors="coerce"), dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ConfigError(key, f"column '{shown(name)}' holds no numbers ({one_line(error)})") from error
        bad = np.flatnonzero(~(np.abs(numbers) <= np.finfo(np.float32).max))  # NaN too
        if len(bad):
            cell = column.iloc[int(bad[0])]
            empty = pd.isna(cell) is True  # for a cell that holds a list, isna returns an array
            what = "is empty or NaN" if empty else f"is '{shown(cell)}', not a finite float32 number"
            more = f" ({len(bad)} such cells in the column)" if len(bad) > 1 else ""
            hint = self._way_to_numbers(str(cell))
            if not hint and key == "data.target" and not empty:
                hint = "; for names of classes set data.task=classification"
            raise ConfigError(key, f"{self.place(int(bad[0]))}, column '{shown(name)}' {what}{more}{hint}")
        return numbers

    def _way_to_numbers(self, cell: str) -> str:
        """Return a hint for the message if the cell looks like a number with a decimal comma, else ""."""
        dialect = self.dialect
        if dialect is None or "," not in cell or not cell.replace(",", "", 1).strip().lstrip("+-").isdecimal():
            return ""
        return f"; for commas before decimals set {dialect.override(decimal=',')}" if dialect.sep != "," else ""

    def classes(self, name: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return a column as class indices, (n,), and the classes' names. Raises ConfigError for data.target."""
        import pandas as pd

        column, place = self.frame[name], f"column '{shown(name)}'"
        if column.dtype.kind in "O" and any(isinstance(cell, list | dict | np.ndarray) for cell in column):
            raise ConfigError("data.target", f"{place} holds lists, which cannot be classes")
        missing = column.isna() if self.dialect is None else column.str.strip().isin(["", *self.dialect.na_values])
        empty = np.flatnonzero(missing.to_numpy())
        if len(empty):
            more = f" ({len(empty)} such cells in the column)" if len(empty) > 1 else ""
            raise ConfigError("data.target", f"{self.place(int(empty[0]))}, {place} is empty{more}")
        codes, found = pd.factorize(column)
        values = list(found)
        numbers = [_number(value) for value in values]
        whole = [number for number in numbers if number is not None and number % 1 == 0]
        if len(whole) < len(values) and not any(number is None for number in numbers):
            raise ConfigError("data.target", f"{place} holds fractions, not classes; set data.task=regression")
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


def _read(path: Path, read: Mapping[str, Any] | None, targets: Sequence[str], as_text: Sequence[str]) -> _Rows:
    """Read the file. Raises ConfigError if it cannot be read, has no rows, or has two columns of one name.

    Args:
        path: of the file.
        read: the dialect, for a CSV file only.
        targets: columns that the table should have.
        as_text: columns of a CSV file to keep as text.
    """
    import pandas as pd

    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else None
        problem = f"no file '{path}' (looked in {Path.cwd()})" if what is None else f"'{path}' {what}; name a file"
        raise ConfigError("data.path", problem)
    is_parquet = path.suffix.lower() in _PARQUET
    if is_parquet and read:
        raise ConfigError("data.read", "is for CSV files; leave it out")
    dialect = None if is_parquet else Dialect.of(read or {})
    try:
        frame = pd.read_parquet(path) if dialect is None else CsvFile(path, dialect).read(targets, as_text)
    except ConfigError:
        raise
    except pd.errors.EmptyDataError:
        raise ConfigError("data.path", f"'{path}' is empty") from None
    except Exception as error:  # pandas, pyarrow and the file system raise many kinds of errors
        raise ConfigError("data.path", f"cannot read '{path}': {one_line(error)}") from error
    if frame.empty:
        raise ConfigError("data.path", f"'{path}' has no rows")
    frame.columns = frame.columns.map(str)
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise ConfigError("data.path", f"two columns of '{path}' are called '{shown(twice)}'; rename one")
    if dialect is None:
        return _Rows(frame, lambda row: f"row {row + 1}", None)
    n_rows = len(frame)
    return _Rows(frame, lambda row: CsvFile(path, dialect).place(row, n_rows), dialect)


def _require_columns(frame: "pd.DataFrame", key: str, names: Sequence[str]) -> None:
    for name in names:
        if name not in frame.columns:
            raise ConfigError(key, f"no column '{shown(name)}'; the columns are: {_listed(frame.columns)}")


def _listed(names: Any) -> str:
    """Return the names in a line: all of up to 50, else the first 50 and how many more there are."""
    texts = [shown(name) for name in names]
    return ", ".join(texts) if len(texts) <= 50 else f"{', '.join(texts[:50])} and {len(texts) - 50} more"
