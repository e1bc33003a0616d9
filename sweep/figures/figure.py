"""Figures for plotly.js as plain data. The page adds its own colours."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}  # above the axes, on the left
_DIGITS = 6


class Figure(NamedTuple):
    """A figure for plotly.js.

    Attributes:
        name: a name that is unique on the page.
        data: the traces.
        layout: the layout.
        min_width: in pixels. If the window is narrower, the figure scrolls sideways.
    """

    name: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    min_width: int = 0

    def to_json(self) -> str:
        """Return the figure as JSON that is safe in a `<script>` element. Numbers that are not finite become null."""
        text = json.dumps(_plain({"data": self.data, "layout": self.layout}), separators=(",", ":"))
        return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def axis(title: str, values: Any, is_log: bool) -> dict[str, Any]:
    """Return the layout of an axis.

    Args:
        title: the title of the axis.
        values: its finite values, at least one.
        is_log: whether to use a logarithmic scale. If the values lie within a factor of 5, the axis is linear anyway,
            since a logarithmic one may then lack ticks. Within two decades, the ticks are at 1, 2 and 5.
    """
    layout: dict[str, Any] = {"title": {"text": title}}
    low, high = min(values), max(values)
    if not is_log or high < 5 * low:
        return {**layout, "type": "linear"}
    few = high < 100 * low
    return {**layout, "type": "log", "dtick": "D2" if few else 1, "minorloglabels": "complete"}


def _plain(value: Any) -> Any:
    """Return the value as plain data for JSON, with floats rounded to six significant digits."""
    if isinstance(value, Mapping):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
