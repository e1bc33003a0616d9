"""Draws the curves of a run: losses and learning rate."""

from pathlib import Path

import numpy as np

from sweep.config.metrics import sign_of
from sweep.config.task_node import AUTO_TASK, direction_of
from sweep.figures.drawing import count_in_whole_numbers, dot, fit_scale, load_matplotlib
from sweep.tracking.folders import RunFolder
from sweep.tracking.journal import curves, first
from sweep.utils.curve import Curve

_COLOURS = {"train/loss": "#4269d0", "val/loss": "#ff725c", "lr": "#3ca951"}
_MOST_OTHERS = 4  # curves shown of a run that has no losses
_MANY_DECADES = 1e6  # ratio of learning rates; below it a linear axis shows a schedule's shape better


def ensure_curves(folder: RunFolder) -> None:
    """Draw the run's curves unless the plot is newer than the journal."""
    if not folder.curves.exists() or folder.curves.stat().st_mtime_ns < folder.journal.stat().st_mtime_ns:
        draw_curves(folder.journal, folder.curves)


def draw_curves(journal: Path, plot: Path) -> None:
    """Write a PNG with the losses by epoch above the learning rate by step. The file is replaced atomically."""
    found = curves(journal)
    start = first(journal, "start") or {}
    new_figure, new_canvas = load_matplotlib()
    figure = new_figure(figsize=(8, 6), dpi=110, layout="constrained")
    canvas = new_canvas(figure)
    losses, rates = figure.subplots(2, 1, height_ratios=[2, 1])
    names = [name for name in ("train/loss", "val/loss") if name in found]
    others = [] if names else [name for name in found if name not in _COLOURS and not name.startswith("step/")]
    for name in names or others[:_MOST_OTHERS]:  # the others are those of a training function
        losses.plot(*found[name], label=name, color=_COLOURS.get(name), linewidth=1.6, marker=dot(found[name].steps))
    monitor = start.get("params", {}).get("trainer.monitor", "val/loss")
    if monitor in found and "val/loss" in found:
        direction = start.get("direction") or direction_of(monitor, AUTO_TASK)  # earlier versions recorded none
        values = found[monitor].values
        best = int((sign_of(direction) * values).argmin())
        epoch, value, name = found[monitor].steps[best], values[best], "" if monitor == "val/loss" else f" {monitor}"
        shown = monitor if monitor in _COLOURS else "val/loss"
        height = found[shown].values[found[shown].steps == epoch]
        losses.plot(epoch, height, "o", color=_COLOURS[shown], label=f"best{name}: {value:.4g} at epoch {epoch}")
    losses.set(ylabel="metric" if others else "loss", xlabel="epoch", title=start.get("name", ""))
    fit_scale(losses, np.concatenate([line.get_ydata() for line in losses.get_lines()] or [[]]))
    if losses.get_legend_handles_labels()[0]:
        losses.legend(frameon=False)
    rate: Curve | None = found.get("step/lr", found.get("lr"))
    if rate is not None:
        rates.plot(*rate, color=_COLOURS["lr"], linewidth=1.2, marker=dot(rate.steps))
        fit_scale(rates, rate.values, factor=_MANY_DECADES)
    rates.set(ylabel="learning rate", xlabel="step" if "step/lr" in found else "epoch")
    for axes in (losses, rates):
        count_in_whole_numbers(axes)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    tmp = plot.with_name(plot.name + ".tmp")
    canvas.print_png(tmp)
    tmp.replace(plot)
