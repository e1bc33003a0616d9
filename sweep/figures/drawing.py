"""What every picture needs: matplotlib without a backend, scales and ticks that can be read, names that fit."""

import os
import sys
from collections.abc import Callable, Sized
from contextlib import suppress
from typing import Any

import numpy as np

from sweep.utils.errors import one_line


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


def spans(values: Any, factor: float) -> bool:
    """Whether finite values, at least one, are positive and the highest is `factor` times the lowest or more."""
    found = np.asarray(values, float)
    found = found[np.isfinite(found)]
    return len(found) > 0 and bool(found.min() > 0) and bool(found.max() >= factor * found.min())


def fit_scale(axes: Any, values: Any, side: str = "y", factor: float = 5.0) -> None:
    """Make an axis logarithmic where that shows more. Within less than a decade its ticks would have no labels."""
    axes.set(**{f"{side}scale": "log" if spans(values, factor) else "linear"})


def count_in_whole_numbers(axes: Any) -> None:
    """Have the ticks below an axis of epochs, steps or trials be whole numbers."""
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def dot(steps: Sized) -> str:
    """The marker of a curve: a line of one point would be invisible."""
    return "o" if len(steps) == 1 else ""


def tail(key: str, most: int = 24) -> str:
    """Return the key, or its last characters: a long name leaves no room for what it names, and its end tells more."""
    return key if len(key) <= most else f"…{key[1 - most :]}"
