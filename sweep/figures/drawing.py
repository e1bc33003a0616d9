"""Helpers for all plots: loading matplotlib, choosing scales and ticks, shortening names."""

import os
import sys
from collections.abc import Callable, Sized
from contextlib import suppress
from typing import Any

import numpy as np

from sweep.utils.errors import one_line


def drawing_problem(draw: Callable[[], object]) -> str | None:
    """Call `draw`. Return None, or its error in one line. A failed plot must not stop anything else."""
    try:
        draw()
    except Exception as error:
        return one_line(error)
    return None


def import_matplotlib() -> None:
    """Import matplotlib even if MPLBACKEND names a missing backend, since plots are drawn without one.

    A notebook sets MPLBACKEND for all programs that it starts, and matplotlib fails to load if that module is missing.
    A valid backend is still set for the user's own figures.
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
    """Return matplotlib's figure and canvas classes.

    The first import takes about 1 s, so no module imports matplotlib at its top.
    """
    import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    return Figure, FigureCanvasAgg


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


def count_in_whole_numbers(axes: Any) -> None:
    """Use only whole numbers as ticks of the x axis, which shows epochs, steps or trials."""
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def dot(steps: Sized) -> str:
    """Return the marker of a curve: a dot if it has one point, which a line would not show, else none."""
    return "o" if len(steps) == 1 else ""


def tail(key: str, most: int = 24) -> str:
    """Return the key, shortened to its last `most` characters. The end of a config key is its most specific part."""
    return key if len(key) <= most else f"…{key[1 - most :]}"
