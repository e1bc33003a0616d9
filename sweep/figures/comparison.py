"""The plot of a comparison, and the figures on its page."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sweep.figures.drawing import (
    COLOURS,
    add_legend,
    count_in_whole_numbers,
    dot,
    finish,
    fit_scale,
    fit_to_lines,
    plain_figure,
    write_png,
)
from sweep.figures.figure import LEGEND, Figure, axis

_PANELS = 4
_DPI = 100
Array = NDArray[np.float64]


class ContenderPoints(NamedTuple):
    """What is drawn of a contender on a task.

    Attributes:
        name: the contender's name.
        scores: the metric of each run; not finite for a run that is missing.
        iqm: their interquartile mean.
        interval: the ends of its 95 % interval.
        untuned_iqm: that of the untuned defaults; None without any.
        trials: numbers of tuning trials, shape (m,).
        best: the best value of tuning by that number, shape (m,).
        best_interval: both ends of its 95 % interval, shape (2, m); None if tuning is no set of independent trials.
        losses: validation losses, shape (runs, epochs), with NaN for runs that stopped earlier.
        rates: the learning rate of tuning trials, the highest of the schedule, with the value of each.
    """

    name: str
    scores: Array
    iqm: float
    interval: tuple[float, float]
    untuned_iqm: float | None
    trials: NDArray[np.int_]
    best: Array
    best_interval: Array | None
    losses: Array
    rates: Sequence[tuple[float, float]]


class TaskPoints(NamedTuple):
    """What is drawn of a task.

    Attributes:
        task: its name; empty if there is only one.
        target: the validation loss whose reaching is timed; infinite if there is none.
        contenders: those that take part.
    """

    task: str
    target: float
    contenders: Sequence[ContenderPoints]

    def titled(self, title: str) -> str:
        """Return the title of a panel."""
        return f"{self.task}: {title}" if self.task else title


class ComparisonPoints(NamedTuple):
    """What is drawn of a comparison.

    Attributes:
        names: the names of all contenders, in the order of their colours.
        metric: the metric of the scores.
        metric_sign: 1.0 if lower scores are better, -1.0 if higher ones are.
        objective: what tuning optimised.
        objective_sign: the same for the objective.
        tasks: the tasks.
        factors: the factors of the performance profile, shape (k,).
        profiles: by contender, the share of runs within each factor of the best median, shape (k,). Empty without one.
    """

    names: Sequence[str]
    metric: str
    metric_sign: float
    objective: str
    objective_sign: float
    tasks: Sequence[TaskPoints]
    factors: Array
    profiles: Mapping[str, Array]


def draw_comparison(points: ComparisonPoints, plot: Path) -> None:
    """Write the plot as a PNG file, which replaces an earlier one in one step."""
    write_png(comparison_plot(points), plot)


def comparison_plot(points: ComparisonPoints) -> Any:
    """Return the plot as a figure of matplotlib, which does not belong to pyplot.

    Each task has a row of four panels; a single task has them two by two. The performance profile is below if there is
    one.
    """
    n_tasks = len(points.tasks)
    rows, columns = (2, 2) if n_tasks == 1 else (n_tasks + bool(points.profiles), _PANELS)
    with plain_figure((5 * columns, 3.9 * rows), _DPI) as figure:
        _fill(figure.subplots(rows, columns, squeeze=False), points)
    return figure


def _fill(axes: Any, points: ComparisonPoints) -> None:
    """Draw into the axes, which have shape (rows, columns)."""
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(points.names)}
    panels = axes.reshape(-1, _PANELS)
    for task, row in zip(points.tasks, panels, strict=False):
        _scores(row[0], task, points, colours)
        _budget(row[1], task, points, colours)
        _curves(row[2], task, colours)
        _rates(row[3], task, points, colours)
    if points.profiles:
        _profile(panels[-1][0], points, colours)
        for empty in panels[-1][1:]:
            empty.set_axis_off()
    for panel in axes.flat:
        finish(panel)


def _scores(axes: Any, task: TaskPoints, points: ComparisonPoints, colours: Mapping[str, str]) -> None:
    """Draw a dot for each run, a bar for the interval of the IQM, and a hollow diamond for the IQM of the defaults."""
    ordered = sorted(task.contenders, key=lambda c: points.metric_sign * c.iqm, reverse=True)
    rng = np.random.default_rng(0)
    for y, c in enumerate(ordered):
        jitter = y + rng.uniform(-0.18, 0.18, len(c.scores))
        axes.plot(c.scores, jitter, ".", color=colours[c.name], alpha=0.45, markersize=6)
        axes.plot([*c.interval], [y, y], color=colours[c.name], linewidth=3, solid_capstyle="butt")
        axes.plot(c.iqm, y, "|", color="black", markersize=16, markeredgewidth=2)
        if c.untuned_iqm is not None:
            label = "untuned defaults" if y == 0 else None
            axes.plot(c.untuned_iqm, y, "D", color="black", fillstyle="none", markersize=7, label=label)
    axes.set_yticks(range(len(ordered)), [c.name for c in ordered])
    axes.set(xlabel=points.metric, title=task.titled("fresh seeds, IQM and 95 % interval"))
    fit_scale(axes, np.concatenate([*(c.scores for c in ordered), []]), "x")
    if axes.get_xscale() == "log":
        axes.tick_params(axis="x", which="minor", labelsize=7)
    add_legend(axes, fontsize=8)


def _budget(axes: Any, task: TaskPoints, points: ComparisonPoints, colours: Mapping[str, str]) -> None:
    for c in task.contenders:
        axes.plot(c.trials, c.best, marker=dot(c.trials), color=colours[c.name], label=c.name)
        if c.best_interval is not None:
            axes.fill_between(c.trials, *c.best_interval, color=colours[c.name], alpha=0.15)
    is_expected = any(c.best_interval is not None for c in task.contenders)
    title = "expected best of tuning" if is_expected else "best of tuning so far"
    count_in_whole_numbers(axes)
    axes.set(xlabel="trials", ylabel=f"best {points.objective}", title=task.titled(title))
    fit_to_lines(axes)
    add_legend(axes, fontsize=8)


def _curves(axes: Any, task: TaskPoints, colours: Mapping[str, str]) -> None:
    """Draw the validation loss by epoch: the median over runs, with the middle half of them shaded."""
    for c in task.contenders:
        epochs = np.arange(1, c.losses.shape[1] + 1)
        if not len(epochs):  # a training function that reports no validation loss
            continue
        low, middle, high = np.nanquantile(c.losses, [0.25, 0.5, 0.75], axis=0)
        axes.plot(epochs, middle, marker=dot(epochs), color=colours[c.name], label=c.name)
        axes.fill_between(epochs, low, high, color=colours[c.name], alpha=0.15)
    if math.isfinite(task.target):
        axes.axhline(task.target, color="black", linewidth=0.8, linestyle="--", label="target")
    count_in_whole_numbers(axes)
    axes.set(xlabel="epoch", ylabel="val/loss", title=task.titled("fresh seeds, median and middle half"))
    fit_to_lines(axes)
    add_legend(axes, fontsize=8)


def _rates(axes: Any, task: TaskPoints, points: ComparisonPoints, colours: Mapping[str, str]) -> None:
    """Draw every tuning trial by its highest learning rate."""
    for c in task.contenders:
        if c.rates:
            axes.plot(*zip(*c.rates, strict=True), ".", color=colours[c.name], alpha=0.6, markersize=5, label=c.name)
    shown = [value for c in task.contenders for _, value in c.rates]
    if shown:
        fit_scale(axes, [lr for c in task.contenders for lr, _ in c.rates], "x")
    axes.set(xlabel="learning rate, the highest", ylabel=points.objective, title=task.titled("tuning trials"))
    fit_to_lines(axes)
    if shown:
        axes.set_ylim(*_limits(shown, axes.get_yscale() == "log", best_last=points.objective_sign < 0))


def _profile(axes: Any, points: ComparisonPoints, colours: Mapping[str, str]) -> None:
    for name, shares in points.profiles.items():
        axes.plot(points.factors, shares, color=colours[name], label=name)
    axes.set(xlabel="factor of the best median", ylabel="share of runs", ylim=(0, 1.02), title="performance profile")
    axes.set_xscale("log")
    add_legend(axes, fontsize=8)


def _limits(values: Sequence[float], is_log: bool, best_last: bool) -> tuple[float, float]:
    """Return finite limits around the values. With more than 40 values, the worst 5 % may lie outside.

    On a logarithmic axis the margins are factors, so both limits are positive.

    Args:
        values: what is drawn.
        is_log: True if the axis is logarithmic.
        best_last: True if higher values are better.
    """
    placed = np.log10(values) if is_log else np.asarray(values, float)
    cut = 0.05 if len(values) > 40 else 0.0
    low, high = np.quantile(placed, [cut if best_last else 0, 1 if best_last else 1 - cut])
    room = 0.05 * (high - low) or (0.3 if is_log else 0.05 * abs(low) or 1.0)
    low, high = float(low - room), float(high + room)
    return (10**low, 10**high) if is_log else (low, high)


def scores_figure(scores: Mapping[str, Sequence[float]], place: int, metric: str) -> Figure:
    """Return a figure for the page with a dot for each run and a box for each contender.

    Args:
        scores: the finite scores of each contender, by name.
        place: the place of the task.
        metric: the metric of the scores.
    """
    values = [value for own in scores.values() for value in own]
    data = [
        {
            "type": "box",
            "x": own,
            "name": name,
            "boxpoints": "all",
            "pointpos": 0,
            "jitter": 0.5,
            "marker": {"color": COLOURS[n % len(COLOURS)], "size": 5},
            "line": {"width": 1},
        }
        for n, (name, own) in enumerate(scores.items())
    ]
    layout = {
        "height": 120 + 60 * len(scores),
        "showlegend": False,
        "xaxis": axis(metric, values or [0.0], bool(values) and min(values) > 0),
        "yaxis": {"type": "category", "automargin": True},
    }
    return Figure(f"scores-{place}", data, layout)


def budget_figure(budgets: Mapping[str, tuple[Sequence[int], Sequence[float | None]]], place: int) -> Figure:
    """Return a figure for the page with a curve for each contender: the best value by the number of tuning trials.

    Args:
        budgets: the numbers of trials and the best values of each contender, by name. None is not drawn.
        place: the place of the task.
    """
    data = [
        {"x": k, "y": best, "name": name, "mode": "lines+markers", "line": {"color": COLOURS[n % len(COLOURS)]}}
        for n, (name, (k, best)) in enumerate(budgets.items())
    ]
    titles = {"xaxis": {"title": {"text": "trials"}}, "yaxis": {"title": {"text": "expected best"}}}
    return Figure(f"budget-{place}", data, {"height": 340, "legend": LEGEND, **titles})
