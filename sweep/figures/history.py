"""The values of a study's trials by number, and the best so far."""

from pathlib import Path
from typing import Any

import numpy as np

from sweep.figures.drawing import COLOURS, MUTED, add_legend, count_in_whole_numbers, finish, fit_scale, png, spans
from sweep.figures.figure import LEGEND, Figure, axis
from sweep.figures.trials import DECADE, Trials


def history_figure(trials: Trials, objective: int) -> Figure:
    """Return a figure of the values by trial number. With one objective, it has a line for the best so far.

    Pruned trials are grey circles, which the line leaves out.
    """
    values, complete = trials.values[:, objective], ~trials.is_pruned
    data: list[dict[str, Any]] = []
    for name, which, marker in (
        ("pruned", trials.is_pruned, {"color": MUTED, "size": 6, "symbol": "circle-open"}),
        ("complete", complete, {"color": COLOURS[0], "size": 7}),
    ):
        if which.any():
            points = {"x": trials.numbers[which].tolist(), "y": values[which].tolist(), "mode": "markers"}
            data.append({**points, "name": name, "marker": marker})
    if len(trials.objectives) == 1 and complete.any():
        line = {"color": COLOURS[1], "width": 1.8, "shape": "hv"}
        best = {"x": trials.numbers, "y": trials.best_so_far(objective), "mode": "lines", "name": "best so far"}
        data.append({**best, "line": line})
    layout = {
        "height": 380,
        "legend": LEGEND,
        "hovermode": "closest",
        "xaxis": {"title": {"text": "trial"}},
        "yaxis": axis(trials.objectives[objective], values, spans(values, DECADE)),
    }
    return Figure(f"history-{objective}", data, layout)


def draw_history(trials: Trials, plot: Path, dpi: int) -> None:
    """Draw the same figure of the first objective as a PNG at `plot`."""
    values, complete = trials.values[:, 0], ~trials.is_pruned
    with png(plot, (7, 4.8), dpi) as figure:
        axes = figure.subplots()
        axes.scatter(trials.numbers[complete], values[complete], s=28, color=COLOURS[0], label="complete", zorder=3)
        if trials.is_pruned.any():
            numbers = trials.numbers[trials.is_pruned]
            axes.scatter(
                numbers, values[trials.is_pruned], s=22, facecolors="none", edgecolors=MUTED, label="pruned", zorder=2
            )
        best = trials.best_so_far(0)
        if np.isfinite(best).any():
            axes.plot(
                trials.numbers, best, drawstyle="steps-post", color=COLOURS[1], linewidth=1.6, label="best so far"
            )
        axes.set(xlabel="trial", ylabel=trials.objectives[0])
        fit_scale(axes, values, factor=DECADE)
        count_in_whole_numbers(axes)
        finish(axes)
        add_legend(axes)
