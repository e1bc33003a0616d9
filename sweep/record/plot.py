"""The picture of a run: loss and learning-rate curves."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sweep.config import direction_of
from sweep.errors import one_line
from sweep.record.folder import RunFolder
from sweep.record.journal import Curve, curves, first

_COLOURS = {"train/loss": "#4269d0", "val/loss": "#ff725c", "lr": "#3ca951"}


def drawing_problem(draw: Callable[[], object]) -> str | None:
    """Draw. Return in one line what is in the way, if something is: a picture decides about nothing else."""
    try:
        draw()
    except Exception as error:
        return one_line(error)
    return None


def import_matplotlib() -> None:
    """Import matplotlib whatever MPLBACKEND says, since pictures are drawn without a backend.

    A notebook sets it for all programs that it starts, and matplotlib refuses to load if the module that it names is
    not there. What matplotlib accepts still holds for figures of the user's own.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


def load_matplotlib():
    """Its figure and canvas classes; the first import takes about a second, so nothing imports it at the top."""
    import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    return Figure, FigureCanvasAgg


def ensure_curves(folder: RunFolder) -> None:
    """Draws the run's curves unless that has been done since its journal last grew."""
    if not folder.curves.exists() or folder.curves.stat().st_mtime_ns < folder.journal.stat().st_mtime_ns:
        draw_curves(folder.journal, folder.curves)


def draw_curves(journal: Path, picture: Path) -> None:
    """Writes a PNG of the epochs' train and validation loss above the learning rate of the steps."""
    found = curves(journal)
    start = first(journal, "start") or {}
    new_figure, new_canvas = load_matplotlib()
    figure = new_figure(figsize=(8, 6), dpi=110, layout="constrained")
    canvas = new_canvas(figure)
    losses, rates = figure.subplots(2, 1, height_ratios=[2, 1])
    for name in ("train/loss", "val/loss"):
        if name in found:
            losses.plot(*found[name], label=name, color=_COLOURS[name], linewidth=1.6)
    monitor = start.get("params", {}).get("trainer.monitor", "val/loss")
    if monitor in found and "val/loss" in found:
        values = found[monitor].values
        best = int(values.argmin() if direction_of(monitor) == "minimize" else values.argmax())
        epoch, value, name = found[monitor].steps[best], values[best], "" if monitor == "val/loss" else f" {monitor}"
        shown = monitor if monitor in _COLOURS else "val/loss"
        height = found[shown].values[found[shown].steps == epoch]
        losses.plot(epoch, height, "o", color=_COLOURS[shown], label=f"best{name}: {value:.4g} at epoch {epoch}")
    losses.set(ylabel="loss", xlabel="epoch", title=start.get("name", ""))
    if any((found[n].values > 0).all() for n in ("train/loss", "val/loss") if n in found):
        losses.set_yscale("log")
    if losses.get_legend_handles_labels()[0]:
        losses.legend(frameon=False)
    rate: Curve | None = found.get("step/lr", found.get("lr"))
    if rate is not None:
        rates.plot(*rate, color=_COLOURS["lr"], linewidth=1.2)
    rates.set(ylabel="learning rate", xlabel="step" if "step/lr" in found else "epoch")
    for axes in (losses, rates):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    tmp = picture.with_name(picture.name + ".tmp")
    canvas.print_png(tmp)
    tmp.replace(picture)
