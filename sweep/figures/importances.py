"""The importances of a study's params, as bars."""

from collections.abc import Mapping
from pathlib import Path

from sweep.figures.drawing import COLOURS, finish, png, tail
from sweep.figures.figure import Figure

_INCHES = 0.4  # of a bar
_PX = 34


def importances_figure(found: Mapping[str, float], objective: int, name: str) -> Figure:
    """Return a bar chart of the importances of one objective.

    Args:
        found: the importances by param, in descending order.
        objective: the place of the objective.
        name: its name.
    """
    keys, values = list(found)[::-1], list(found.values())[::-1]  # bars are placed from below
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": values,
        "y": keys,
        "text": [f"{value:.2f}" for value in values],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": COLOURS[0]},
        "hovertemplate": "%{y}: %{x:.3f}<extra></extra>",
    }
    layout = {
        "height": 110 + _PX * len(keys),
        "margin": {"r": 50, "t": 15},
        "xaxis": {"title": {"text": f"importance for {name}"}, "rangemode": "tozero"},
        "yaxis": {
            "type": "category",
            "showgrid": False,
            "tickmode": "array",
            "tickvals": keys,
            "ticktext": [tail(key) for key in keys],
        },
    }
    return Figure(f"importances-{objective}", [bars], layout)


def draw_importances(found: Mapping[str, Mapping[str, float]], plot: Path, dpi: int) -> str:
    """Draw the importances as a PNG at `plot`, one panel for each objective, and return its file name.

    Args:
        found: the importances by objective and by param, each in descending order.
        plot: the file to write.
        dpi: dots per inch.
    """
    heights = [0.7 + _INCHES * len(of_one) for of_one in found.values()]
    with png(plot, (6, sum(heights)), dpi) as figure:
        panels = figure.subplots(len(found), squeeze=False, height_ratios=heights)[:, 0]
        for axes, (name, of_one) in zip(panels, found.items(), strict=True):
            places = range(len(of_one))[::-1]
            bars = axes.barh(places, list(of_one.values()), color=COLOURS[0], height=0.6)
            axes.set_yticks(places, [tail(key, 40) for key in of_one])
            axes.bar_label(bars, fmt="%.2f", padding=3)
            axes.set(xlabel=f"importance for {name}")
            axes.margins(x=0.1)
            finish(axes, has_grid=False)
    return plot.name
