"""The files of a learning-rate range test: its losses, its suggestion and a plot of both."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sweep.figures.drawing import dot, load_matplotlib
from sweep.utils.files import to_yaml, write_atomic

if TYPE_CHECKING:
    from sweep.training.range_test import Interval, Ramp, Suggestion

_LOSS, _BASE, _MAX, _DIVERGED = "#4269d0", "#3ca951", "#ff725c", "#9c9c9c"


class RangeFolder:
    """The paths of everything in the folder of one range test."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.losses = self.path / "losses.csv"
        self.result = self.path / "lr_range.yaml"
        self.plot = self.path / "lr_range.png"
        self.log = self.path / "run.log"  # Hydra writes it

    @property
    def written(self) -> list[Path]:
        """Every file that the test writes."""
        return [self.losses, self.result, self.plot, self.log]


def write_losses(folder: RangeFolder, first_seed: int, ramps: "Sequence[Ramp]") -> None:
    """Write losses.csv atomically, with one row for each update of each seed. `first_seed` is that of the first ramp.

    Creates the folder if needed.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["seed", "update", "lr", "loss", "averaged_loss"])
    for seed, ramp in enumerate(ramps, first_seed):
        for update, (lr, loss, mean) in enumerate(zip(ramp.lrs, ramp.losses, ramp.averages, strict=True), 1):
            writer.writerow([seed, update, f"{lr:.6g}", f"{loss:.6g}", f"{mean:.6g}"])
    folder.path.mkdir(parents=True, exist_ok=True)
    write_atomic(folder.losses, text.getvalue())


def write_result(folder: RangeFolder, result: Mapping[str, Any]) -> None:
    """Write lr_range.yaml atomically. The folder must exist."""
    write_atomic(folder.result, to_yaml(dict(result)))


def draw(folder: RangeFolder, title: str, ramps: "Sequence[Ramp]", suggestion: "Suggestion | None") -> None:
    """Draw lr_range.png: the averaged losses against the learning rate, and the suggested bounds.

    A thin line shows each seed, a thick line their mean. A shaded band around each bound shows how it varies from seed
    to seed.

    Args:
        folder: where the plot goes. An earlier one is replaced in one step.
        title: the title of the plot.
        ramps: each has at least one loss.
        suggestion: None draws the losses alone.
    """
    new_figure, new_canvas = load_matplotlib()
    figure = new_figure(figsize=(8, 4.8), dpi=110, layout="constrained")
    canvas = new_canvas(figure)
    axes = figure.subplots()
    for ramp in ramps:
        axes.plot(ramp.lrs, ramp.averages, color=_LOSS, linewidth=0.7, alpha=0.35)
    lrs, mean = _mean(ramps)
    axes.plot(lrs, mean, color=_LOSS, linewidth=2.2, marker=dot(lrs), label="averaged loss, mean over seeds")
    if suggestion is not None:
        _show(axes, suggestion)
    lowest = min(min(ramp.averages) for ramp in ramps)
    at_first = float(np.mean([ramp.level_at_first for ramp in ramps]))
    room = 0.3 * (at_first - lowest)
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title=title)
    if room > 0:
        axes.set_ylim(lowest - room / 3, at_first + 2 * room)
    axes.legend(frameon=False, loc="best", fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    tmp = folder.plot.with_name(folder.plot.name + ".tmp")
    canvas.print_png(tmp)
    tmp.replace(folder.plot)


def _show(axes: Any, suggestion: "Suggestion") -> None:
    """Draw a line for each suggested bound, a band for its interval, and light shading between the bounds."""
    axes.axvspan(suggestion.base_lr.value, suggestion.max_lr.value, color=_BASE, alpha=0.08, linewidth=0)
    for name, colour in (("base_lr", _BASE), ("max_lr", _MAX)):
        interval: Interval = getattr(suggestion, name)
        message = f"{name} {interval.value:g} ({interval.low:g} to {interval.high:g})"
        axes.axvspan(interval.low, interval.high, color=colour, alpha=0.18, linewidth=0)
        axes.axvline(interval.value, color=colour, linewidth=1.8, label=message)
    if suggestion.diverged_lr is not None:
        lr = suggestion.diverged_lr.value
        axes.axvline(lr, color=_DIVERGED, linewidth=1.2, linestyle="--", label=f"diverges at {lr:g}")


def _mean(ramps: "Sequence[Ramp]") -> tuple[Sequence[float], NDArray[Any]]:
    """Return learning rates and the mean of the averaged losses, up to the last update that every seed reached."""
    n = min(len(ramp.averages) for ramp in ramps)
    return ramps[0].lrs[:n], np.mean([ramp.averages[:n] for ramp in ramps], axis=0)
