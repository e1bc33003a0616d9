"""The trials of a study with two or three objectives, and their Pareto front."""

from pathlib import Path
from typing import Any

from sweep.figures.drawing import COLOURS, MUTED, add_legend, finish, fit_scale, png
from sweep.figures.figure import LEGEND, Figure
from sweep.figures.trials import DECADE, Trials


def has_front(trials: Trials) -> bool:
    """Return whether the study has two or three objectives. More than three cannot be drawn."""
    return len(trials.objectives) in (2, 3)


def pareto_figure(trials: Trials) -> Figure:
    """Return a figure of the trials by objective, with the Pareto front marked. See `has_front`."""
    flat = len(trials.objectives) == 2
    data: list[dict[str, Any]] = []
    for name, which, colour in (("trial", ~trials.is_best, MUTED), ("Pareto front", trials.is_best, COLOURS[1])):
        places = dict(zip("xyz", trials.values[which].T, strict=False))
        trace = {"type": "scatter" if flat else "scatter3d", **places, "mode": "markers", "name": name}
        numbers = [f"trial {number}" for number in trials.numbers[which]]
        data.append({**trace, "marker": {"color": colour, "size": 7 if flat else 4}, "text": numbers})
    titles = {f"{side}axis": {"title": {"text": name}} for side, name in zip("xyz", trials.objectives, strict=False)}
    shown = titles if flat else {"scene": titles}
    return Figure("pareto", data, {"height": 440, "legend": LEGEND, "hovermode": "closest", **shown})


def draw_pareto(trials: Trials, plot: Path, dpi: int) -> None:
    """Draw the same figure as a PNG at `plot`."""
    flat = len(trials.objectives) == 2
    with png(plot, (6.4, 4.8), dpi) as figure:
        axes = figure.add_subplot() if flat else figure.add_subplot(projection="3d")
        for name, which, colour in (
            ("trial", ~trials.is_best, COLOURS[0]),
            ("Pareto front", trials.is_best, COLOURS[1]),
        ):
            axes.scatter(*trials.values[which].T, s=28, color=colour, label=name)
        for side, name, values in zip("xyz", trials.objectives, trials.values.T, strict=False):
            axes.set(**{f"{side}label": name})
            if flat:  # in three dimensions matplotlib has no logarithmic axes
                fit_scale(axes, values, side, DECADE)
        if flat:
            finish(axes)
        else:
            axes.locator_params(nbins=5)
        add_legend(axes)
