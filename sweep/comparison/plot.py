"""The plot of a comparison: scores, tuning, curves and learning rates of each task."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sweep.comparison.judge import Judgement, TaskResult
from sweep.comparison.runs import Run
from sweep.comparison.studies import Plan
from sweep.config.metrics import sign_of
from sweep.figures.drawing import count_in_whole_numbers, dot, fit_scale, import_matplotlib, load_matplotlib

_COLOURS = ("#4269d0", "#ff725c", "#3ca951", "#efb118", "#a463f2", "#6cc5b0", "#9c6b4e", "#97bbf5", "#ff8ab7")
_PANELS = 4


def draw(plan: Plan, judgement: Judgement, plot: Path) -> None:
    """Write the plot as a PNG file, which replaces an earlier one in one step.

    Each task has a row of four panels; a single task has them two by two. The performance profile is below if there is
    one.
    """
    drawn = figure(plan, judgement)
    tmp = plot.with_name(plot.name + ".tmp")
    drawn.canvas.print_png(tmp)
    tmp.replace(plot)


def figure(plan: Plan, judgement: Judgement) -> Any:
    """Return the plot as a figure of matplotlib, which does not belong to pyplot."""
    import_matplotlib()
    from matplotlib import style

    with style.context("default"):  # Optuna's plots change the style
        return _figure(plan, judgement)


def _figure(plan: Plan, judgement: Judgement) -> Any:
    new_figure, new_canvas = load_matplotlib()
    n_tasks, profile = len(judgement.tasks), bool(judgement.profiles)
    rows, columns = (2, 2) if n_tasks == 1 else (n_tasks + profile, _PANELS)
    figure = new_figure(figsize=(5 * columns, 3.9 * rows), dpi=100, layout="constrained")
    new_canvas(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    names = [contender.name for contender in plan.field.contenders]
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    panels = axes.reshape(-1, _PANELS)
    for task, row in zip(judgement.tasks, panels, strict=False):
        _scores(row[0], task, judgement, plan, colours)
        _budget(row[1], task, plan, colours)
        _curves(row[2], task, colours)
        _rates(row[3], task, plan, colours)
    if profile:
        _profile(panels[-1][0], judgement, colours)
        for empty in panels[-1][1:]:
            empty.set_axis_off()
    for panel in axes.flat:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _scores(axes: Any, task: TaskResult, judgement: Judgement, plan: Plan, colours: dict[str, str]) -> None:
    """Draw a dot for each run, a bar for the interval of the IQM, and a hollow diamond for the IQM of the defaults."""
    ordered = sorted(task.standings, key=lambda s: s.score.iqm, reverse=True)
    rng = np.random.default_rng(0)
    for y, s in enumerate(ordered):
        values, colour = judgement.sign * s.score.costs, colours[s.name]
        axes.plot(values, y + rng.uniform(-0.18, 0.18, len(values)), ".", color=colour, alpha=0.45, markersize=6)
        low, high = (judgement.sign * end for end in s.score.interval)
        axes.plot([low, high], [y, y], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot(judgement.sign * s.score.iqm, y, "|", color="black", markersize=16, markeredgewidth=2)
        if s.untuned is not None:
            label = "untuned defaults" if y == 0 else None
            axes.plot(
                judgement.sign * s.untuned.iqm, y, "D", color="black", fillstyle="none", markersize=7, label=label
            )
    axes.set_yticks(range(len(ordered)), [s.name for s in ordered])
    axes.set(xlabel=plan.compare.metric, title=_titled("fresh seeds, IQM and 95 % interval", task))
    finite = np.concatenate([s.score.costs[np.isfinite(s.score.costs)] for s in ordered] or [np.empty(0)])
    fit_scale(axes, judgement.sign * finite, "x")
    if axes.get_xscale() == "log":
        axes.tick_params(axis="x", which="minor", labelsize=7)
    if any(s.untuned for s in ordered):
        _legend(axes)


def _budget(axes: Any, task: TaskResult, plan: Plan, colours: dict[str, str]) -> None:
    sign = sign_of(plan.settings.direction[0])
    for s in task.standings:
        budget = s.budget
        axes.plot(budget.k, sign * budget.values, marker=dot(budget.k), color=colours[s.name], label=s.name)
        if budget.interval:
            axes.fill_between(budget.k, sign * budget.low, sign * budget.high, color=colours[s.name], alpha=0.15)
    expected = any(s.budget.interval for s in task.standings)
    title = "expected best of tuning" if expected else "best of tuning so far"
    count_in_whole_numbers(axes)
    axes.set(xlabel="trials", ylabel=f"best {plan.settings.objective[0]}", title=_titled(title, task))
    _fit_to_lines(axes)
    _legend(axes)


def _curves(axes: Any, task: TaskResult, colours: dict[str, str]) -> None:
    """Draw the validation loss by epoch: the median over runs, with the middle half of them shaded."""
    for s in task.standings:
        losses = _padded([run for run in s.entry.runs if run is not None])
        epochs = np.arange(1, losses.shape[1] + 1)
        if not len(epochs):  # a training function that reports no validation loss
            continue
        low, middle, high = np.nanquantile(losses, [0.25, 0.5, 0.75], axis=0)
        axes.plot(epochs, middle, marker=dot(epochs), color=colours[s.name], label=s.name)
        axes.fill_between(epochs, low, high, color=colours[s.name], alpha=0.15)
    if math.isfinite(task.target):
        axes.axhline(task.target, color="black", linewidth=0.8, linestyle="--", label="target")
    count_in_whole_numbers(axes)
    axes.set(xlabel="epoch", ylabel="val/loss", title=_titled("fresh seeds, median and middle half", task))
    _fit_to_lines(axes)
    _legend(axes)


def _padded(runs: list[Run]) -> np.ndarray:
    """Return the validation losses, shape (runs, epochs), padded with nan for runs that stopped early.

    The number of epochs is the median over the runs; longer runs are cut.
    """
    longest = int(np.median([len(run.val_loss) for run in runs]))
    return np.array(
        [np.pad(r.val_loss, (0, max(0, longest - len(r.val_loss))), constant_values=np.nan)[:longest] for r in runs]
    )


def _rates(axes: Any, task: TaskResult, plan: Plan, colours: dict[str, str]) -> None:
    """Draw every tuning trial by its highest learning rate."""
    shown = []
    for s in task.standings:
        keys = [k for k in ("optimizer.lr", "scheduler.max_lr") if k in s.entry.ranges]
        tried = [
            (float(t.params[keys[-1]]), t.value)
            for t in s.entry.trials
            if keys and t.value is not None and not t.diverged
        ]
        if tried:
            rates, values = zip(*tried, strict=True)
            axes.plot(rates, values, ".", color=colours[s.name], alpha=0.6, markersize=5, label=s.name)
            shown += values
    if shown:
        fit_scale(axes, np.concatenate([line.get_xdata() for line in axes.get_lines()]), "x")
    axes.set(
        xlabel="learning rate, the highest", ylabel=plan.settings.objective[0], title=_titled("tuning trials", task)
    )
    _fit_to_lines(axes)
    if shown:
        best_last = sign_of(plan.settings.direction[0]) < 0
        axes.set_ylim(*_limits(shown, axes.get_yscale() == "log", best_last))


def _profile(axes: Any, judgement: Judgement, colours: dict[str, str]) -> None:
    for name, shares in judgement.profiles.items():
        axes.plot(judgement.factors, shares, color=colours[name], label=name)
    axes.set(xlabel="factor of the best median", ylabel="share of runs", ylim=(0, 1.02), title="performance profile")
    axes.set_xscale("log")
    _legend(axes)


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


def _fit_to_lines(axes: Any) -> None:
    drawn = [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
    fit_scale(axes, np.concatenate([*drawn, []]))


def _legend(axes: Any) -> None:
    """Add a legend if there is something to name. Otherwise matplotlib would warn."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)


def _titled(title: str, task: TaskResult) -> str:
    return f"{task.task}: {title}" if task.task else title
