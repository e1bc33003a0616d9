"""The values of a study's trials against each param."""

from pathlib import Path
from typing import Any

import numpy as np

from sweep.figures.drawing import COLOURS, finish, fit_scale, import_matplotlib, png, spans, tail
from sweep.figures.figure import Figure, axis
from sweep.figures.trials import DECADE, Param, Trials, label

_LIGHT = "#9fb8d6"  # of the first trials; later ones have a stronger colour
_PANEL_INCHES = 2.1


def slice_figures(trials: Trials, objective: int) -> list[Figure]:
    """Return one figure for each param with the value against the param. Separate figures fit on a phone."""
    return [_slice(trials, objective, i, param) for i, param in enumerate(trials.params)]


def _slice(trials: Trials, objective: int, place: int, param: Param) -> Figure:
    has_it = np.isfinite(param.values)
    x, y, numbers = param.values[has_it], trials.values[has_it, objective], trials.numbers[has_it]
    if param.choices:
        ticks = {"tickmode": "array", "tickvals": [*range(len(param.choices))]}
        across: dict[str, Any] = {**ticks, "ticktext": [*map(label, param.choices)], "range": _room(param)}
        found = [param.choices[int(i)] for i in x]
    else:
        across = axis(param.key, x, param.is_log)
        found = [f"{value:.4g}" for value in x]
    trace = {
        "x": x,
        "y": y,
        "mode": "markers",
        "showlegend": False,
        "marker": {"color": numbers, "colorscale": [[0, _LIGHT], [1, COLOURS[0]]], "size": 6},
        "text": [f"trial {number}<br>{text}" for number, text in zip(numbers, found, strict=True)],
        "hovertemplate": "%{text}: %{y:.5g}<extra></extra>",
    }
    values = trials.values[:, objective]
    layout = {
        "height": 300,
        "hovermode": "closest",
        "xaxis": {**across, "title": {"text": tail(param.key, 32)}},
        "yaxis": axis(trials.objectives[objective], values, spans(values, DECADE)),
    }
    return Figure(f"slice-{objective}-{place}", [trace], layout)


def draw_slices(trials: Trials, plot: Path, dpi: int) -> None:
    """Draw the slices of the first objective as a PNG at `plot`, side by side.

    The panels are narrow, so labels are shortened and ticks are few.
    """
    import_matplotlib()
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    n = len(trials.params)
    with png(plot, (_PANEL_INCHES * n + 2, 4.6), dpi) as figure:
        shades = Normalize(trials.numbers.min(), trials.numbers.max())
        panels = figure.subplots(1, n, sharey=True, squeeze=False)[0]
        for axes, param in zip(panels, trials.params, strict=True):
            _set_ticks(axes, param)
            has_it = np.isfinite(param.values)
            style = {"cmap": "Blues", "norm": shades, "s": 36, "edgecolors": "grey", "linewidths": 0.5}
            axes.scatter(param.values[has_it], trials.values[has_it, 0], c=trials.numbers[has_it], **style)
            axes.set_xlabel(tail(param.key, 32))
            finish(axes)
        panels[0].set_ylabel(trials.objectives[0])
        fit_scale(panels[0], trials.values[:, 0], factor=DECADE)
        figure.colorbar(ScalarMappable(shades, "Blues"), ax=panels[-1], label="trial", fraction=0.3)


def _set_ticks(axes: Any, param: Param) -> None:
    if param.choices:
        axes.set_xticks(range(len(param.choices)), [tail(text, 10) for text in param.choices], rotation=20, ha="right")
        axes.set_xlim(*_room(param))
    elif param.is_log:
        axes.set_xscale("log")
        axes.xaxis.get_major_locator().set_params(numticks=4)
    else:
        axes.xaxis.get_major_locator().set_params(nbins=3)


def _room(param: Param) -> list[float]:
    """Return the limits of an axis of choices."""
    return [-0.5, len(param.choices) - 0.5]
