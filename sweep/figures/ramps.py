"""The losses of a learning-rate range test, and the bounds that it suggests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sweep.figures.drawing import COLOURS, MUTED, add_legend, dot, finish, png

_LOSS, _DIVERGED = COLOURS[0], MUTED
_BOUNDS = (COLOURS[2], COLOURS[1])


class Ramp(Protocol):
    """The losses of one seed. `averages` has one averaged loss for each update, and `lrs` its learning rate."""

    @property
    def lrs(self) -> Sequence[float]: ...

    @property
    def averages(self) -> Sequence[float]: ...

    @property
    def level_at_first(self) -> float: ...


class Interval(Protocol):
    """A learning rate and how it varies from seed to seed."""

    @property
    def value(self) -> float: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


def draw_ramps(
    ramps: Sequence[Ramp], bounds: Mapping[str, Interval], diverged_lr: float | None, title: str, plot: Path
) -> None:
    """Draw the averaged losses against the learning rate, and the suggested bounds, as a PNG.

    A thin line shows each seed, a thick line their mean. A shaded band around each bound shows how it varies from seed
    to seed.

    Args:
        ramps: each has at least one loss.
        bounds: the lower and the upper bound, by name. Empty draws the losses alone.
        diverged_lr: the learning rate at which the training diverges; None if it does not.
        title: the title of the plot.
        plot: the file to write.
    """
    with png(plot, (8, 4.8), 110) as figure:
        axes = figure.subplots()
        for ramp in ramps:
            axes.plot(ramp.lrs, ramp.averages, color=_LOSS, linewidth=0.7, alpha=0.35)
        lrs, mean = _mean(ramps)
        axes.plot(lrs, mean, color=_LOSS, linewidth=2.2, marker=dot(lrs), label="averaged loss, mean over seeds")
        if bounds:
            _show_bounds(axes, bounds)
        if diverged_lr is not None:
            name = f"diverges at {diverged_lr:g}"
            axes.axvline(diverged_lr, color=_DIVERGED, linewidth=1.2, linestyle="--", label=name)
        axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title=title)
        lowest = min(min(ramp.averages) for ramp in ramps)
        at_first = float(np.mean([ramp.level_at_first for ramp in ramps]))
        room = 0.3 * (at_first - lowest)
        if room > 0:
            axes.set_ylim(lowest - room / 3, at_first + 2 * room)
        add_legend(axes, loc="best", fontsize=9)
        finish(axes)


def _show_bounds(axes: Any, bounds: Mapping[str, Interval]) -> None:
    """Draw a line for each bound, a band for its interval, and light shading between the bounds."""
    base, top = (bound.value for bound in bounds.values())
    axes.axvspan(base, top, color=_BOUNDS[0], alpha=0.08, linewidth=0)
    for (name, bound), colour in zip(bounds.items(), _BOUNDS, strict=True):
        message = f"{name} {bound.value:g} ({bound.low:g} to {bound.high:g})"
        axes.axvspan(bound.low, bound.high, color=colour, alpha=0.18, linewidth=0)
        axes.axvline(bound.value, color=colour, linewidth=1.8, label=message)


def _mean(ramps: Sequence[Ramp]) -> tuple[Sequence[float], NDArray[Any]]:
    """Return learning rates and the mean of the averaged losses, up to the last update that every seed reached."""
    n = min(len(ramp.averages) for ramp in ramps)
    return ramps[0].lrs[:n], np.mean([ramp.averages[:n] for ramp in ramps], axis=0)
