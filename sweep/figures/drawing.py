"""Helpers for all plots: writing a PNG, choosing scales and ticks, shortening names.

matplotlib takes about 1 s to import, so no module imports it at its top.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from sweep.utils.environment import environment
from sweep.utils.errors import one_line

# Distinguishable on white and on black, also with red-green colour blindness.
COLOURS = ("#3b82c4", "#e4772e", "#2a9d77", "#c05299", "#b8992a", "#7b6fd0", "#c94f4f", "#5f9ea0")
MUTED = "#8b95a1"


def drawing_problem(draw: Callable[[], object]) -> str | None:
    """Call `draw`. Return None, or its error in one line. A failed plot must not stop anything else."""
    try:
        draw()
    except Exception as error:
        return one_line(error)
    return None


def import_matplotlib() -> None:
    """Import what drawing needs of matplotlib, even if MPLBACKEND names a missing backend: plots are drawn without one.

    A notebook sets MPLBACKEND for all programs that it starts, and matplotlib fails to load if that module is missing.
    A valid backend is still set for the user's own figures.
    """
    if "matplotlib" not in sys.modules:
        backend = os.environ.get("MPLBACKEND")
        with environment({"MPLBACKEND": None}):
            import matplotlib
        if backend:
            with suppress(ValueError):
                matplotlib.rcParams["backend"] = backend
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import matplotlib.style


@contextmanager
def plain_figure(size: tuple[float, float], dpi: float) -> Iterator[Any]:
    """Yield a new figure of matplotlib, which does not belong to pyplot, in matplotlib's default style.

    What is drawn meanwhile has that style too, whatever the program has set for its own figures.

    Args:
        size: width and height in inches.
        dpi: dots per inch.
    """
    import_matplotlib()
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context("default"):
        figure = Figure(figsize=size, dpi=dpi, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


@contextmanager
def png(plot: Path, size: tuple[float, float], dpi: float) -> Iterator[Any]:
    """Yield a new figure as `plain_figure` does, and write it to `plot` at the end, in one step."""
    with plain_figure(size, dpi) as figure:
        yield figure
        write_png(figure, plot)


def write_png(figure: Any, plot: Path) -> None:
    """Write a figure as a PNG, which replaces an earlier one in one step."""
    tmp = plot.with_name(plot.name + ".tmp")
    figure.canvas.print_png(tmp)
    tmp.replace(plot)


def finish(axes: Any, has_grid: bool = True) -> None:
    """Give axes the look of all plots: no lines on top and on the right, and a light grid."""
    if has_grid:
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def add_legend(axes: Any, **options: Any) -> None:
    """Add a legend if there is something to name. Otherwise matplotlib would warn."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, **options)


def spans(values: Any, factor: float) -> bool:
    """Return whether the finite values are all positive and the highest is at least `factor` times the lowest."""
    found = np.asarray(values, float)
    found = found[np.isfinite(found)]
    return len(found) > 0 and bool(found.min() > 0) and bool(found.max() >= factor * found.min())


def fit_scale(axes: Any, values: Any, side: str = "y", factor: float = 5.0) -> None:
    """Make an axis logarithmic if its positive values span at least `factor`, else linear.

    On a logarithmic axis, values within less than a decade would get no tick labels.
    """
    axes.set(**{f"{side}scale": "log" if spans(values, factor) else "linear"})


def fit_to_lines(axes: Any) -> None:
    """Make the y axis logarithmic if the values of the lines span enough, as `fit_scale` does."""
    fit_scale(axes, np.concatenate([*(np.asarray(line.get_ydata(), float) for line in axes.get_lines()), []]))


def count_in_whole_numbers(axes: Any) -> None:
    """Use only whole numbers as ticks of the x axis, which shows epochs, steps or trials."""
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def dot(steps: Sized) -> str:
    """Return the marker of a curve: a dot if it has one point, which a line would not show, else none."""
    return "o" if len(steps) == 1 else ""


def tail(key: str, most: int = 24) -> str:
    """Return the key, shortened to its last `most` characters. The end of a config key is its most specific part."""
    return key if len(key) <= most else f"…{key[1 - most :]}"
