"""A user's own table, from CSV or Parquet."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sweep.data.samples import Samples, TaskName
from sweep.errors import ConfigError, one_line

if TYPE_CHECKING:
    import pandas as pd


def table(
    path: str,
    target: str | Sequence[str],
    features: Sequence[str] | None = None,
    task: TaskName = "regression",
) -> Samples:
    """Columns `features` (all but the target when null) as inputs, `target` (one or several) as what to predict.

    A path that ends in .parquet or .pq is read as Parquet, anything else as CSV with a header line. Classes may be
    names or numbers; they are indexed in sorted order. Raises ConfigError with the row and column of a bad cell.
    """
    frame = _read(Path(path))
    targets = [target] if isinstance(target, str) else list(target)
    if not targets:
        raise ConfigError("data.target", "is empty; name the column to predict")
    inputs = [str(c) for c in frame.columns if c not in targets] if features is None else list(features)
    for key, names in (("data.target", targets), ("data.features", inputs)):
        if len(set(names)) < len(names):
            raise ConfigError(key, f"names a column twice: {', '.join(names)}")
    _require_columns(frame, "data.target", targets)
    _require_columns(frame, "data.features", inputs)
    if not inputs:
        raise ConfigError("data.features", f"is empty; choose from: {', '.join(map(str, frame.columns))}")
    if both := [name for name in inputs if name in targets]:
        raise ConfigError("data.features", f"'{both[0]}' is a target too; leave it out of one of them")
    x = np.column_stack([_numbers(frame, "data.features", name) for name in inputs])
    for name, column in zip(inputs, x.T, strict=True):
        if len(column) > 1 and np.ptp(column) == 0:
            raise ConfigError("data.features", f"column '{name}' is constant ({column[0]:g}); leave it out")
    source = str(Path(path).resolve())
    name = Path(path).stem
    if task == "classification":
        if len(targets) > 1:
            raise ConfigError("data.target", "classification takes one column; give one, or set data.task=regression")
        y, classes = _classes(frame, targets[0])
        return Samples(name=name, task=task, x=x, y=y, features=tuple(inputs), classes=classes, source=source)
    y = np.column_stack([_numbers(frame, "data.target", t) for t in targets])
    return Samples(name=name, task=task, x=x, y=y, features=tuple(inputs), source=source)


def _read(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        frame = pd.read_parquet(path) if path.suffix in (".parquet", ".pq") else _read_csv(path)
    except FileNotFoundError:
        raise ConfigError("data.path", f"no file '{path}' (looked in {Path.cwd()})") from None
    except ConfigError:
        raise
    except pd.errors.EmptyDataError:
        raise ConfigError("data.path", f"'{path}' is empty") from None
    except Exception as error:  # parsers raise what they like: pandas, pyarrow, the file system
        raise ConfigError("data.path", f"cannot read '{path}': {one_line(error)}") from error
    if frame.empty:
        raise ConfigError("data.path", f"'{path}' has no rows")
    frame.columns = frame.columns.map(str)
    return frame


def _read_csv(path: Path) -> "pd.DataFrame":
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            header = pd.read_csv(path, header=None, nrows=1, dtype=str, skipinitialspace=True).iloc[0].dropna()
            if twice := header[header.duplicated()].tolist():
                raise ConfigError("data.path", f"two columns of '{path}' are called '{twice[0]}'; rename one")
            return pd.read_csv(
                path, index_col=False, skipinitialspace=True
            )  # else it takes a column that the header lacks for row labels
        except pd.errors.ParserWarning:
            raise ConfigError("data.path", f"rows of '{path}' have more cells than its header line") from None


def _require_columns(frame: "pd.DataFrame", key: str, names: Sequence[str]) -> None:
    for name in names:
        if name not in frame.columns:
            raise ConfigError(key, f"no column '{name}'; the columns are: {', '.join(map(str, frame.columns))}")


def _numbers(frame: "pd.DataFrame", key: str, name: str) -> NDArray[np.float64]:
    import pandas as pd

    column = frame[name]
    if column.dtype.kind in "mM":
        raise ConfigError(key, f"column '{name}' holds dates or durations; turn them into numbers, or leave it out")
    numbers = np.asarray(pd.to_numeric(column, errors="coerce"), dtype=np.float64)
    bad = np.flatnonzero(~(np.abs(numbers) <= np.finfo(np.float32).max))  # NaN too
    if len(bad):
        row = int(bad[0])
        cell = column.iloc[row]
        empty = pd.isna(cell) is True  # of a cell that holds a list, isna is an array
        what = "is empty or NaN" if empty else f"is '{cell}', not a finite float32 number"
        more = f" ({len(bad)} such cells in the column)" if len(bad) > 1 else ""
        hint = "; for names of classes set data.task=classification" if key == "data.target" and not empty else ""
        raise ConfigError(key, f"row {row + 1}, column '{name}' {what}{more}{hint}")
    return numbers


def _classes(frame: "pd.DataFrame", name: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    column = frame[name]
    empty = np.flatnonzero(column.isna().to_numpy())
    if len(empty):
        raise ConfigError("data.target", f"row {int(empty[0]) + 1}, column '{name}' is empty or NaN")
    if column.dtype.kind == "f" and np.any(column.to_numpy() % 1 != 0):
        raise ConfigError(
            "data.target", f"column '{name}' holds fractions, which are no classes; set data.task=regression"
        )
    classes, y = np.unique(column.to_numpy(), return_inverse=True)
    if len(classes) < 2:
        raise ConfigError("data.target", f"column '{name}' holds one class only, '{classes[0]}'")
    return y.astype(np.int64), tuple(map(str, classes))
