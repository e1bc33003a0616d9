"""Reading a CSV file. Errors say what is wrong with it, in which line, and which setting would read it."""

import codecs
import csv
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.config.overrides import setting, word
from sweep.utils.errors import ConfigError
from sweep.utils.terminal import escaped_line

if TYPE_CHECKING:
    import pandas as pd

_KEY = "data.read"
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas", r"\s+": "blanks"}
_SAMPLED = 20  # records that are read to check the separator
_CHUNK_CELLS = 4_000_000  # of a file that is read at once
_FEWEST_ROWS = 1000  # of such a chunk
_LONGEST_SHOWN = 60  # characters of a cell in a message
_BINARY = {
    b"PAR1": "a Parquet file; name it .parquet",
    b"ARROW1": "a Feather or Arrow file; save it as CSV or Parquet",
    b"FEA1": "a Feather file; save it as CSV or Parquet",
    b"PK\x03\x04": "an Excel or zip file; save it as CSV or Parquet",
    b"\xd0\xcf\x11\xe0": "an Excel file; save it as CSV or Parquet",
    b"\x89HDF": "an HDF5 file; save it as CSV or Parquet",
    b"SQLite format 3": "a database; save the table as CSV or Parquet",
    b"\x1f\x8b": "compressed by gzip; unpack it",
}
_OF_WIDE_CHARACTERS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, kw_only=True)
class Dialect:
    r"""How a CSV file is written: the keys of `data.read`, with the meaning that they have for pandas.read_csv.

    Attributes:
        sep: what separates cells: one character, or \s+ for any number of blanks.
        decimal: the character before decimals.
        encoding: such as utf-8 or latin-1.
        thousands: the character that groups digits, if there is one.
        quotechar: the character around a cell that contains the separator.
        comment: the character that starts a comment, if there is one.
        skiprows: how many lines come before the header.
        na_values: further texts that stand for an empty cell.
    """

    sep: str = ","
    decimal: str = "."
    encoding: str = "utf-8"
    thousands: str | None = None
    quotechar: str = '"'
    comment: str | None = None
    skiprows: int = 0
    na_values: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: object) -> "Dialect":
        """Make a dialect of `data.read`. Raises ConfigError for an unknown key, a bad value or two equal characters."""
        if not isinstance(given, Mapping):
            raise ConfigError(_KEY, f'must be null or hold keys, such as {{sep: ";"}}, got {given!r}')
        known = cls.__dataclass_fields__
        for key in given:
            if key not in known:
                raise ConfigError(f"{_KEY}.{key}", f"is not a key of it; choose one of: {', '.join(known)}")
        values = {key: value for key, value in given.items() if value is not None}
        if values.get("sep") in ("\\t", "tab"):
            values["sep"] = "\t"
        for key in ("sep", "decimal", "thousands", "quotechar", "comment"):
            fits = isinstance(text := values.get(key, ","), str) and (len(text) == 1 or (key, text) == ("sep", r"\s+"))
            if not fits or text in "\r\n":
                or_blanks = r", or \s+ for blanks" if key == "sep" else ""
                raise ConfigError(f"{_KEY}.{key}", f"must be one character{or_blanks}, got {text!r}")
        _check_encoding(values.get("encoding", "utf-8"))
        skipped = values.get("skiprows", 0)
        if isinstance(skipped, bool) or not isinstance(skipped, int) or skipped < 0:
            raise ConfigError(f"{_KEY}.skiprows", f"must be a number of lines >= 0, got {skipped!r}")
        missing = values.get("na_values", ())
        if isinstance(missing, str) or not isinstance(missing, Sequence):
            missing = (missing,)
        if not all(isinstance(text, str | int | float) for text in missing):
            raise ConfigError(f"{_KEY}.na_values", f"must be a list of texts, got {missing!r}")
        values["na_values"] = tuple(map(str, missing))
        made = cls(**values)
        for one, other in (("sep", "decimal"), ("sep", "thousands"), ("decimal", "thousands"), ("sep", "quotechar")):
            if getattr(made, one) == getattr(made, other):
                raise ConfigError(f"{_KEY}.{other}", f"is '{getattr(made, other)}', like {_KEY}.{one}; change one")
        return made

    def override(self, **changes: Any) -> str:
        """Return the command-line argument that sets this dialect with `changes`."""
        values = {key: getattr(self, key) for key in self.__dataclass_fields__} | changes
        kept = {key: value for key, value in values.items() if value != self.__dataclass_fields__[key].default}
        written = {key: "\\t" if value == "\t" else value for key, value in kept.items()}
        return word(setting(_KEY, written))


def _check_encoding(name: object) -> None:
    try:
        "a".encode(str(name))
    except (LookupError, ValueError):
        raise ConfigError(
            f"{_KEY}.encoding", f"'{name}' is not an encoding; give one such as latin-1, cp1252 or utf-16"
        ) from None


@dataclass(frozen=True)
class CsvFile:
    """A file and its dialect.

    Errors are ConfigErrors for the key data.path, or for data.read if another dialect would read the file.
    """

    path: Path
    dialect: Dialect

    def read(self, targets: Sequence[str], as_text: Sequence[str]) -> "pd.DataFrame":
        """Read the table. A column without a name is called "Unnamed: <position>", from 0.

        Args:
            targets: columns that the header should name; they help to recognise a wrong separator.
            as_text: columns whose cells are kept as text.
        """
        import pandas as pd

        self._refuse_binary()
        try:
            sample = [cells for _, cells in zip(range(_SAMPLED), self._cells(), strict=False)]
            if not sample:
                raise ConfigError("data.path", f"'{self.path}' is empty")
            self._check_separator(sample, targets)
            header = self._header(sample[0])
            texts = {i: "={}".format for i, name in enumerate(header) if name in as_text}
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)
                frame = self._frame(texts, len(header))
        except UnicodeError:
            raise self._of_encoding() from None
        except (pd.errors.ParserWarning, pd.errors.ParserError) as error:
            raise (self._of_lengths(str(error)) or error) from None
        frame.columns = header
        for name in as_text:
            if name in header:
                frame[name] = frame[name].str[1:]
        return frame

    def _frame(self, texts: Mapping[int, Callable[[str], str]], n_columns: int) -> "pd.DataFrame":
        """Read the table in chunks, each column in an array of its own, which takes half the memory of one reading.

        A column's type must not depend on the chunks: if it differs between two of them by more than whole numbers and
        fractions, the file is read again at once.

        Args:
            texts: the converter of each column that is kept as text, by position.
            n_columns: the number of columns.
        """
        import pandas as pd

        read = partial(
            pd.read_csv,
            self.path,
            index_col=False,  # else a column that the header lacks would become the row labels
            skipinitialspace=True,
            low_memory=False,  # else a column's type could change inside a chunk
            converters=texts,  # the "=" before each cell keeps pandas from reading a text such as "NA" as NaN
            **{key: getattr(self.dialect, key) for key in Dialect.__dataclass_fields__ if key != "na_values"},
            na_values=list(self.dialect.na_values),
        )
        with read(chunksize=max(_FEWEST_ROWS, _CHUNK_CELLS // n_columns)) as reader:
            chunks = list(reader)
        if len(chunks) == 1:
            return chunks[0]
        kinds = [{str(chunk.dtypes.iloc[i]) for chunk in chunks} for i in range(chunks[0].shape[1])]
        if any(len(kind) > 1 and kind != {"int64", "float64"} for kind in kinds):
            whole: Any = read()
            return whole
        names = list(chunks[0].columns)
        columns = {name: pd.concat([chunk.pop(name) for chunk in chunks], ignore_index=True) for name in names}
        return pd.DataFrame(columns, copy=False)

    def place(self, row: int, n_rows: int) -> str:
        """Return in words where data row `row` (from 0) begins: its line in the file (from 1), if that can be found.

        A cell may contain line breaks, so the lines are counted by reading the file again.
        """
        try:
            lines = [line for line, _ in self._records()][1:]
        except (UnicodeError, csv.Error, OSError):
            lines = []
        return f"line {lines[row]}" if len(lines) == n_rows else f"data row {row + 1}"

    def _header(self, cells: Sequence[str]) -> list[str]:
        """Return the columns' names. Raises ConfigError if two are equal, or if there are none."""
        names = [cell.strip() for cell in cells]
        for name in names:
            if name and names.count(name) > 1:
                raise ConfigError("data.path", f"two columns of '{self.path}' are called '{shown(name)}'; rename one")
        if not any(names):
            raise ConfigError("data.path", f"the header line of '{self.path}' names no column")
        return [name or f"Unnamed: {i}" for i, name in enumerate(names)]

    def _check_separator(self, sample: Sequence[Sequence[str]], targets: Sequence[str]) -> None:
        """Raise ConfigError if the dialect's separator does not fit the sample and another one does.

        A separator fits if all records have the same number of cells, at least two, and the header names the targets.
        If nothing separates the header, another separator need not give the targets' names.
        """
        if _is_even(sample) and set(targets) <= {cell.strip() for cell in sample[0]}:
            return
        is_one_cell = len(sample[0]) == 1
        for sep, name in _SEPARATORS.items():
            other = CsvFile(self.path, Dialect(**{**vars(self.dialect), "sep": sep}))
            cells = [cells for _, cells in zip(range(_SAMPLED), other._cells(), strict=False)]
            expected = set(targets) <= {cell.strip() for cell in cells[0]} or (is_one_cell and sep in ";\t|")
            if sep != self.dialect.sep and _is_even(cells) and expected:
                decimal = "," if sep != "," and any(_has_decimal_comma(c) for row in cells[1:] for c in row) else "."
                way = self.dialect.override(sep=sep, decimal=decimal)
                raise ConfigError(_KEY, f"the cells of '{self.path}' are separated by {name}; set {way}")

    def _of_lengths(self, pandas_says: str) -> ConfigError | None:
        """Return the error for a record with more cells than the header, or for an open quotation mark; else None."""
        try:
            (_, header), *records = [(line, len(cells)) for line, cells in self._records()]
        except (UnicodeError, csv.Error, ValueError):
            return None
        for line, n_cells in records:
            if n_cells > header:
                quoted = "; a cell that holds the separator needs quotation marks"
                message = f"line {line} of '{self.path}' has {n_cells} cells, more than its header, which has {header}"
                return ConfigError("data.path", message + quoted)
        if "EOF inside string" not in pandas_says:
            return None
        line = records[-1][0] if records else 1
        return ConfigError("data.path", f"a quotation mark in line {line} of '{self.path}' is never closed")

    def _of_encoding(self) -> ConfigError:
        """Return the error for a file in another encoding, with the setting for it if a byte order mark shows it."""
        content = self.path.read_bytes()
        for mark, encoding in _OF_WIDE_CHARACTERS:
            if content.startswith(mark):
                return ConfigError(
                    _KEY, f"'{self.path}' is in {encoding}; set {self.dialect.override(encoding=encoding)}"
                )
        encoding = self.dialect.encoding
        try:
            content.decode(encoding)
            where = ""
        except UnicodeError as error:
            start = getattr(error, "start", 0)
            line = content[:start].count(b"\n") + 1
            where = f" (line {line} has the byte 0x{content[start]:02x})"
        way = self.dialect.override(encoding="latin-1")
        return ConfigError(_KEY, f"'{self.path}' is not in {encoding}{where}; set {way}, or the encoding that it has")

    def _refuse_binary(self) -> None:
        """Raise ConfigError if the file's first bytes show that it is not text."""
        with open(self.path, "rb") as file:
            start = file.read(4096)
        for mark, kind in _BINARY.items():
            if start.startswith(mark):
                raise ConfigError("data.path", f"'{self.path}' is {kind}")
        wide = self.dialect.encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32"))
        if b"\0" in start and not wide:
            if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise self._of_encoding()
            raise ConfigError("data.path", f"'{self.path}' is not text; save it as CSV or Parquet")

    def _cells(self) -> Iterator[list[str]]:
        return (cells for _, cells in self._records())

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the line in which each record begins, from 1, and its cells. Lines that pandas skips are left out."""
        dialect = self.dialect
        blanks = dialect.sep == r"\s+"
        with _long_cells(), open(self.path, encoding=self._encoding, newline="") as file:
            for _ in range(dialect.skiprows):
                file.readline()
            reader = csv.reader(
                (line if dialect.comment is None else _before(line, dialect.comment) for line in file),
                delimiter=" " if blanks else dialect.sep,
                quotechar=dialect.quotechar,
                skipinitialspace=True,
            )
            end = 0
            for cells in reader:
                begin, end = end + 1, reader.line_num
                if blanks:
                    cells = [cell for cell in re.split(r"\s+", " ".join(cells).strip()) if cell]
                if cells and (len(cells) > 1 or cells[0].strip()):
                    yield begin + dialect.skiprows, cells

    @property
    def _encoding(self) -> str:
        """The dialect's encoding; for UTF-8, the one that skips a byte order mark."""
        return "utf-8-sig" if codecs.lookup(self.dialect.encoding).name == "utf-8" else self.dialect.encoding


@contextmanager
def _long_cells() -> Iterator[None]:
    """Hold the csv module's limit so high that a cell may have any length, as it may for pandas."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _before(line: str, comment: str) -> str:
    """Return the line without its comment."""
    return line.partition(comment)[0] + "\n" if comment in line else line


def _is_even(records: Sequence[Sequence[str]]) -> bool:
    """Return whether all records have the same number of cells, at least two."""
    return len(records[0]) > 1 and len({len(cells) for cells in records}) == 1


def _has_decimal_comma(cell: str) -> bool:
    return re.fullmatch(r"\s*[+-]?\d*,\d+\s*", cell) is not None


def shown(cell: object) -> str:
    """Return a cell or a name for a message: on one line, and cut to 60 characters."""
    text = escaped_line(str(cell)[: _LONGEST_SHOWN + 1])
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
