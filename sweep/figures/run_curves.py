"""The curves of one run: its losses, or a few of its metrics, and its learning rate."""

from collections.abc import Mapping
from pathlib import Path

from sweep.figures.drawing import COLOURS, add_legend, count_in_whole_numbers, dot, finish, fit_scale, fit_to_lines, png
from sweep.utils.curve import Curve

_COLOURS = {"train/loss": COLOURS[0], "val/loss": COLOURS[1], "lr": COLOURS[2]}
_MOST_OTHERS = 4  # curves shown of a run that has no losses
_MANY_DECADES = 1e6  # ratio of learning rates; below it a linear axis shows a schedule's shape better


def draw_run_curves(curves: Mapping[str, Curve], monitor: str, sign: float, title: str, plot: Path) -> None:
    """Draw the losses by epoch above the learning rate by step, as a PNG.

    Args:
        curves: the run's curves, by metric.
        monitor: the curve that selects the best weights, whose best epoch is marked.
        sign: 1.0 if lower values of the monitor are better, -1.0 if higher ones are.
        title: the title of the plot.
        plot: the file to write.
    """
    losses = [name for name in ("train/loss", "val/loss") if name in curves]
    others = [] if losses else [name for name in curves if name not in _COLOURS and not name.startswith("step/")]
    with png(plot, (8, 6), 110) as figure:
        upper, lower = figure.subplots(2, 1, height_ratios=[2, 1])
        for name in losses or others[:_MOST_OTHERS]:  # the others are those of a training function
            steps = curves[name].steps
            upper.plot(*curves[name], label=name, color=_COLOURS.get(name), linewidth=1.6, marker=dot(steps))
        if monitor in curves and "val/loss" in curves:
            values = curves[monitor].values
            best = int((sign * values).argmin())
            epoch, name = curves[monitor].steps[best], "" if monitor == "val/loss" else f" {monitor}"
            shown = monitor if monitor in _COLOURS else "val/loss"
            height = curves[shown].values[curves[shown].steps == epoch]
            text = f"best{name}: {values[best]:.4g} at epoch {epoch}"
            upper.plot(epoch, height, "o", color=_COLOURS[shown], label=text)
        upper.set(ylabel="metric" if others else "loss", xlabel="epoch", title=title)
        fit_to_lines(upper)
        add_legend(upper)
        rate = curves.get("step/lr", curves.get("lr"))
        if rate is not None:
            lower.plot(*rate, color=_COLOURS["lr"], linewidth=1.2, marker=dot(rate.steps))
            fit_scale(lower, rate.values, factor=_MANY_DECADES)
        lower.set(ylabel="learning rate", xlabel="step" if "step/lr" in curves else "epoch")
        for axes in (upper, lower):
            count_in_whole_numbers(axes)
            finish(axes)
