"""Draws the curves of several trials in one plot, each as the mean over its seeds within a band."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sweep.figures.drawing import COLOURS, add_legend, count_in_whole_numbers, dot, finish, fit_scale, png
from sweep.figures.figure import LEGEND, Figure, axis
from sweep.utils.curve import Curve

_MOST_POINTS = 400  # of a curve on the page
_ROW_PX = 210


class Band(NamedTuple):
    """A metric of a trial over its seeds. All arrays have shape (n,), for the n steps that all seeds have."""

    steps: NDArray[np.int64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n_seeds: int


Bands = Mapping[str, Mapping[str, Band]]  # by metric, then by the trial's label


def over_seeds(curves: Sequence[Curve]) -> Band:
    """Return the mean, lowest and highest value of one or more curves, at the steps that they all have."""
    steps = curves[0].steps
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.steps)
    values = np.stack([curve.values[np.searchsorted(curve.steps, steps)] for curve in curves])  # (seeds, n)
    return Band(steps, values.mean(0), values.min(0), values.max(0), len(curves))


def curves_figure(bands: Bands) -> Figure:
    """Return a figure with one row for each metric, over the same epochs. A click on a trial hides it in all rows."""
    colours = _colours(bands)
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {
        "height": _ROW_PX * len(bands) + 90,
        "hovermode": "x",
        "legend": LEGEND,
        "xaxis": {"title": {"text": "epoch"}, "anchor": f"y{len(bands)}" if len(bands) > 1 else "y"},
    }
    height = 1 / len(bands)
    for row, (metric, of_trials) in enumerate(bands.items(), 1):
        number = "" if row == 1 else str(row)
        top = 1 - (row - 1) * height
        ends = [end for band in of_trials.values() for end in (band.low.min(), band.high.max())]
        shown = axis(metric, ends, min(ends) > 0)
        layout[f"yaxis{number}"] = {**shown, "domain": [max(0.0, top - height * 0.88), top]}
        for label, band in of_trials.items():
            shared = {"yaxis": f"y{number}", "legendgroup": label, "name": label}
            thin = _thinned(band)
            if band.n_seeds > 1:
                traces.append({**_outline(thin), **shared, "fillcolor": colours[label] + "2e"})
            traces.append(
                {
                    **shared,
                    "x": thin.steps,
                    "y": thin.mean,
                    "mode": "lines" if len(thin.steps) > 1 else "markers",
                    "showlegend": row == 1,
                    "line": {"color": colours[label], "width": 1.8},
                    "hovertemplate": "%{y:.5g}",
                }
            )
    return Figure("curves", traces, layout)


def draw_bands(bands: Bands, plot: Path, dpi: int) -> str:
    """Draw the same figure as a PNG at `plot`, and return its file name."""
    colours = _colours(bands)
    with png(plot, (7, 2.2 * len(bands) + 0.6), dpi) as figure:
        rows = figure.subplots(len(bands), 1, squeeze=False)[:, 0]
        for axes, (metric, of_trials) in zip(rows, bands.items(), strict=True):
            for label, band in of_trials.items():
                colour = colours[label]
                axes.plot(band.steps, band.mean, color=colour, linewidth=1.4, label=label, marker=dot(band.steps))
                if band.n_seeds > 1:
                    axes.fill_between(band.steps, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
            fit_scale(axes, [end for band in of_trials.values() for ends in (band.low, band.high) for end in ends])
            axes.set(ylabel=metric, xlabel="epoch")
            count_in_whole_numbers(axes)
            finish(axes)
        add_legend(rows[0], fontsize="small", ncols=3)
    return plot.name


def _colours(bands: Bands) -> dict[str, str]:
    labels = dict.fromkeys(label for of_trials in bands.values() for label in of_trials)
    return {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}


def _thinned(band: Band) -> Band:
    """Return the band with at most 400 evenly spaced points, including the first and the last."""
    n = len(band.steps)
    if n <= _MOST_POINTS:
        return band
    kept = np.unique(np.linspace(0, n - 1, _MOST_POINTS).round().astype(np.int64))
    return Band(band.steps[kept], band.mean[kept], band.low[kept], band.high[kept], band.n_seeds)


def _outline(band: Band) -> dict[str, Any]:
    """Return a filled trace along the highest values and back along the lowest."""
    return {
        "x": np.concatenate([band.steps, band.steps[::-1]]),
        "y": np.concatenate([band.high, band.low[::-1]]),
        "fill": "toself",
        "mode": "none",
        "hoverinfo": "skip",
        "showlegend": False,
    }
