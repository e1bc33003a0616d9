"""The cells of a table's column as names of categories, or as dates and their parts."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

DATE_PARTS = ("days", "month", "weekday", "hour")  # days: since 1970-01-01, with fractions; weekday: from Monday, 0
_DAY_NS = 24 * 3600 * 1e9


def names(column: "pd.Series") -> NDArray[np.object_]:
    """Return the name of each cell's category, (n,), None for an empty cell. 1, 1.0 and "1" have the same name."""
    import pandas as pd

    codes, found = pd.factorize(column)
    texts = np.array([*map(_name, found), None], dtype=object)
    return texts[codes]  # the code of an empty cell is -1


def _name(value: Any) -> str | None:
    if isinstance(value, float | np.floating) and value % 1 == 0:
        value = int(value)
    return str(value).strip() or None


def dates(column: "pd.Series", form: str | None) -> "pd.Series":
    """Return the column as datetimes without a time zone: those with one are converted to UTC.

    A cell that is empty or no date is NaT.

    Args:
        column: of datetimes, or of texts or numbers.
        form: of the texts, as for strptime, such as "%d.%m.%Y"; None for ISO 8601.
    """
    import pandas as pd

    if column.dtype.kind in "iufb" and form is None:
        return pd.Series(pd.NaT, index=column.index)
    if column.dtype.kind != "M":
        texts = column if column.dtype.kind == "O" else column.astype(str)
        return pd.to_datetime(texts, errors="coerce", format=form or "ISO8601", utc=True).dt.tz_localize(None)
    return column if column.dt.tz is None else column.dt.tz_convert(None)


def date_part(column: "pd.Series", part: str) -> NDArray[np.float64]:
    """Return a part of datetimes, one of DATE_PARTS, as numbers, (n,). NaT gives NaN."""
    if part == "days":
        numbers = column.astype("datetime64[ns]").astype(np.int64).to_numpy() / _DAY_NS
        return np.where(column.isna(), np.nan, numbers)
    if part == "hour":
        return (column.dt.hour + column.dt.minute / 60 + column.dt.second / 3600).to_numpy(np.float64)
    numbers = column.dt.day_of_week if part == "weekday" else column.dt.month
    return numbers.to_numpy(np.float64)
