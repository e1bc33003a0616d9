"""Reading a table from CSV or Parquet files."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sweep.data.csv_file import CsvFile, Dialect, shown
from sweep.data.samples import PARTS
from sweep.data.table_rows import TableRows
from sweep.utils.errors import ConfigError, one_line

if TYPE_CHECKING:
    import pandas as pd

_PARQUET = (".parquet", ".pq")


def read_table(
    path: str | Mapping[str, str], read: Mapping[str, Any] | None, targets: Sequence[str], as_text: Sequence[str]
) -> TableRows:
    """Read the file, or the files for the words train, val and test. Raises ConfigError if their columns differ."""
    import pandas as pd

    if isinstance(path, str):
        return _read(path, read, targets, as_text)
    if not set(path) <= set(PARTS) or not {"train", "test"} <= set(path):
        raise ConfigError("data.path", f"must name files for train, test and perhaps val, got {', '.join(path)}")
    parts = {word: _read(path[word], read, targets, as_text) for word in PARTS if word in path}
    first = parts["train"].frame.columns
    for word, rows in parts.items():
        if set(rows.frame.columns) != set(first):
            odd = sorted(set(rows.frame.columns) ^ set(first))[0]
            raise ConfigError("data.path", f"column '{shown(odd)}' is in only one of '{path['train']}', '{path[word]}'")
    sizes = [len(rows.frame) for rows in parts.values()]
    starts = np.cumsum([0, *sizes[:-1]])

    def place(row: int) -> str:
        i = int(np.searchsorted(starts, row, side="right")) - 1
        word, rows = list(parts.items())[i]
        return f"{rows.place(row - int(starts[i]))} of '{path[word]}'"

    return replace(
        parts["train"],
        frame=pd.concat([rows.frame for rows in parts.values()], ignore_index=True),
        place=place,
        source=", ".join(rows.source for rows in parts.values()),
        split=np.repeat([*parts], sizes),
    )


def _read(file: str, read: Mapping[str, Any] | None, targets: Sequence[str], as_text: Sequence[str]) -> TableRows:
    """Read one file. Raises ConfigError if it cannot be read, has no rows, or has two columns of one name.

    Args:
        file: its path.
        read: the dialect, for a CSV file only.
        targets: columns that the table should have.
        as_text: columns of a CSV file to keep as text.
    """
    import pandas as pd

    path = Path(os.path.expanduser(file))
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else None
        problem = f"no file '{path}' (looked in {Path.cwd()})" if what is None else f"'{path}' {what}; name a file"
        raise ConfigError("data.path", problem)
    is_parquet = path.suffix.lower() in _PARQUET
    if is_parquet and read:
        raise ConfigError("data.read", "is for CSV files; leave it out")
    dialect = None if is_parquet else Dialect.of(read or {})
    try:
        frame = _parquet(path) if dialect is None else CsvFile(path, dialect).read(targets, as_text)
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
    n_rows = len(frame)

    def place(row: int) -> str:
        return f"row {row + 1}" if dialect is None else CsvFile(path, dialect).place(row, n_rows)

    return TableRows(frame, place, dialect, name=path.stem, source=str(path.resolve()), n_first=n_rows)


def _parquet(path: Path) -> "pd.DataFrame":
    """Read a Parquet file, column by column: all at once, they would need more than twice their memory.

    The file is read at once if its columns cannot be read by their names: if two are equal, if one looks like a path
    in a nested column, or if the file's folders name further columns.
    """
    import pandas as pd
    from pyarrow.parquet import read_schema

    schema = read_schema(path)
    indices = [name for name in (schema.pandas_metadata or {}).get("index_columns", []) if isinstance(name, str)]
    names = [name for name in schema.names if name not in indices]
    if len(set(names)) < len(names) or any("." in name for name in names) or "=" in str(path.resolve().parent):
        return pd.read_parquet(path)
    columns = {}
    for name in names:
        column = pd.read_parquet(path, columns=[name]).iloc[:, 0].reset_index(drop=True)
        columns[name] = column.copy()  # PyArrow does not give memory back to the system
    return pd.DataFrame(columns, copy=False)
