"""A figure for plotly.js as plain data, so that the page decides on its colours."""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import plotly.graph_objects as go

# To be told apart on white and on black, and by those who see no red or no green.
COLOURS = ("#3b82c4", "#e4772e", "#2a9d77", "#c05299", "#b8992a", "#7b6fd0", "#c94f4f", "#5f9ea0")
MUTED = "#8b95a1"
BAD_TO_GOOD = [[0.0, "#9aa5b1"], [0.6, "#c98b5e"], [1.0, "#e4572e"]]
_DIGITS = 6


class Figure(NamedTuple):
    """name: unique on the page. min_width: in pixels, below which it scrolls sideways on its own."""

    name: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    min_width: int = 0

    def to_json(self) -> str:
        """To stand in a `<script>`: without a character that could end it. What is no finite number is null."""
        text = json.dumps(_plain({"data": self.data, "layout": self.layout}), separators=(",", ":"))
        return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def axis(title: str, values: Any, is_log: bool) -> dict[str, Any]:
    """For finite values, at least one; linear anyway where they are within a factor of 5, and a tick may be missing.

    Logarithmic ticks stand where numbers are short: at 1, 2 and 5 within two decades.
    """
    layout: dict[str, Any] = {"title": {"text": title}}
    low, high = min(values), max(values)
    if not is_log or high < 5 * low:
        return {**layout, "type": "linear"}
    few = high < 100 * low
    return {**layout, "type": "log", "dtick": "D2" if few else 1, "minorloglabels": "complete"}


def figure_of(name: str, figure: "go.Figure", **layout: Any) -> Figure:
    """One of Optuna's, without its template and title. layout: on top of its own, one level deep."""
    plotted = figure.to_plotly_json()
    own = {key: value for key, value in plotted["layout"].items() if key not in ("template", "title")}
    for key, value in layout.items():
        own[key] = {**own[key], **value} if isinstance(value, dict) and isinstance(own.get(key), dict) else value
    return Figure(name, list(plotted["data"]), own)


def _plain(value: Any) -> Any:
    """For JSON, numbers rounded to six digits."""
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
