"""The trials of a study in parallel coordinates: a line for each trial, an axis for each param."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sweep.figures.drawing import spans, tail
from sweep.figures.figure import Figure
from sweep.figures.trials import DECADE, Param, Trials, label
from sweep.utils.wording import short

_BAD_TO_GOOD = [[0.0, "#9aa5b1"], [0.6, "#c98b5e"], [1.0, "#e4572e"]]
_AXIS_PX = 130


def parallel_figure(trials: Trials, objective: int) -> Figure | None:
    """Return parallel coordinates in which you can brush a range; None with fewer than two values or no params.

    Optuna 5 draws one trace for each trial. A browser needs seconds for that, and ranges cannot be brushed.
    """
    if len(trials.numbers) < 2 or not trials.params:
        return None
    values = trials.values[:, objective]
    worst_first = -trials.signs[objective] * values
    ranks = worst_first.argsort().argsort() / max(1, len(values) - 1)  # colours by rank, so that outliers do not matter
    is_log = spans(values, DECADE)
    dimensions = [_numbers(trials.objectives[objective], np.log10(values) if is_log else values, is_log)]
    dimensions += map(_dimension, trials.params)
    order = worst_first.argsort()  # the best are drawn last, on top
    for dimension in dimensions:
        dimension["values"] = dimension["values"][order]
    line = {"color": ranks[order], "colorscale": _BAD_TO_GOOD, "cmin": 0, "cmax": 1, "showscale": False}
    trace = {"type": "parcoords", "line": line, "dimensions": dimensions, "labelangle": -18, "labelside": "top"}
    layout = {"height": 440, "margin": {"t": 90, "l": 70, "r": 60, "b": 30}}
    return Figure(f"parallel-{objective}", [trace], layout, min_width=_AXIS_PX * len(dimensions))


def _dimension(param: Param) -> dict[str, Any]:
    """Return the axis of a param. Trials without the param are placed below all others."""
    if not param.choices:
        values = np.log10(param.values) if param.is_log else param.values
        return _numbers(tail(param.key), values, param.is_log)
    labels: Mapping[int, str] = {i: label(choice) for i, choice in enumerate(param.choices)}
    if np.isnan(param.values).any():
        labels = {-1: "none", **labels}
    return {
        "label": tail(param.key),
        "values": np.nan_to_num(param.values, nan=-1),
        "tickvals": list(labels),
        "ticktext": list(labels.values()),
        "range": [min(labels) - 0.15, max(labels) + 0.15],
    }


def _numbers(name: str, values: np.ndarray, is_log: bool) -> dict[str, Any]:
    """Return an axis of numbers. `values` has shape (n,), with NaN for missing ones; with `is_log` they are log10."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = (high - low) * 0.02 or 0.5
    ticks = [float(tick) for tick in np.linspace(low, high, 5)] if high > low else [low]
    texts = [short(float(10**tick)) if is_log else short(tick) for tick in ticks]
    bottom = low
    if np.isnan(values).any():
        bottom = low - max(6 * room, 0.5 if high == low else 0)
        values = np.where(np.isnan(values), bottom, values)
        ticks, texts = [bottom, *ticks], ["none", *texts]
    return {
        "label": name,
        "values": values,
        "tickvals": ticks,
        "ticktext": texts,
        "range": [bottom - room, high + room],
    }
