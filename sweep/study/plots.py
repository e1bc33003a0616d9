"""Plots of a study as PNG files, mostly by Optuna: its history, values against params, and importances."""

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from sweep.figures.drawing import count_in_whole_numbers, fit_scale, import_matplotlib, load_matplotlib, tail
from sweep.study.reading import as_shown, has_value, objective_names

# All plots of a study that are drawn, here or for its report.
PLOTS = ("history.png", "slices.png", "pareto_front.png", "curves.png", "importances.png")
_DECADE = 10.0  # values that span more than this are drawn on a logarithmic axis


def draw_plots(study: optuna.Study, folder: Path, dpi: int = 120) -> list[str]:
    """Draw the plots of a study. This takes about a second, half of it for imports.

    Args:
        study: the study, or a copy of it.
        folder: where the plots go. It is created if needed.
        dpi: dots per inch.

    Returns:
        The file names: history.png and slices.png, or with two or three objectives only pareto_front.png. Empty if
        fewer than two trials have a value, or with more than three objectives.
    """
    trials = study.get_trials(deepcopy=False)
    if sum(map(has_value, trials)) < 2:
        return []
    import_matplotlib()
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shown, names = as_shown(study), objective_names(study)
    kinds: dict[str, Callable[[], Any]] = {"history": lambda: _history(study, names[0])}
    if len(names) > 1:
        kinds = {"pareto_front": lambda: _front(shown, names)} if len(names) <= 3 else {}
    elif any(t.params for t in trials):
        kinds["slices"] = lambda: _slices(shown, names[0])
    folder.mkdir(exist_ok=True)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # hides its notes on categories that look like numbers
    with warnings.catch_warnings(), matplotlib.rc_context():  # Optuna changes the global style
        warnings.simplefilter("ignore")  # Optuna warns that its plots are experimental; matplotlib warns too
        for name, plot in kinds.items():
            figure = np.atleast_1d(plot())[0].figure
            _make_plain(figure)
            figure.savefig(folder / f"{name}.png", dpi=dpi, bbox_inches="tight")
            pyplot.close(figure)
    return [f"{name}.png" for name in kinds]


def draw_importances(found: Mapping[str, Mapping[str, float]], plot: Path, dpi: int) -> str:
    """Draw the importance of each param as bars, the largest on top, one panel for each objective.

    Args:
        found: the importances by objective and by param, each in descending order.
        plot: the PNG file to write.
        dpi: dots per inch.

    Returns:
        The file name.
    """
    new_figure, new_canvas = load_matplotlib()
    heights = [0.7 + 0.4 * len(of_one) for of_one in found.values()]
    figure = new_figure(figsize=(6, sum(heights)), dpi=dpi, layout="constrained")
    canvas = new_canvas(figure)
    panels = figure.subplots(len(found), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, of_one) in zip(panels, found.items(), strict=True):
        places = range(len(of_one))[::-1]
        bars = axes.barh(places, list(of_one.values()), color="#3b82c4", height=0.6)
        axes.set_yticks(places, [tail(key, 40) for key in of_one])
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.set(xlabel=f"importance for {name}")
        axes.margins(x=0.1)
        axes.spines[["top", "right"]].set_visible(False)
    canvas.print_png(plot)
    return plot.name


def _history(study: optuna.Study, name: str) -> Any:
    """Draw the values by trial, with a line for the best so far. Pruned trials are grey circles that do not count."""
    from optuna.visualization import matplotlib as plots

    axes = plots.plot_optimization_history(study, target_name=name)
    pruned = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.PRUNED and t.values]
    if pruned:
        x, y = [t.number for t in pruned], [t.values[0] for t in pruned]
        axes.scatter(x, y, s=18, facecolors="none", edgecolors="grey", label="pruned")
    fit_scale(axes, _values(study, 0), factor=_DECADE)
    count_in_whole_numbers(axes)
    axes.legend()
    return axes


def _slices(shown: optuna.Study, name: str) -> Any:
    """Draw a panel for each param. The panels are narrow, so labels are shortened and ticks are few."""
    from matplotlib.category import StrCategoryFormatter
    from matplotlib.ticker import LogLocator, MaxNLocator
    from optuna.visualization import matplotlib as plots

    drawn: Any = plots.plot_slice(shown, target_name=name)
    panels = np.atleast_1d(drawn)
    for axes in panels:
        fit_scale(axes, _values(shown, 0), factor=_DECADE)
        axes.set_xlabel(tail(axes.get_xlabel(), 32))
        locator, formatter = axes.xaxis.get_major_locator(), axes.xaxis.get_major_formatter()
        if isinstance(formatter, StrCategoryFormatter):
            places = axes.get_xticks()
            texts = [tail(text, 10) for text in formatter.format_ticks(places)]
            axes.set_xticks(places, texts, rotation=20, ha="right")
        elif isinstance(locator, LogLocator):
            locator.set_params(numticks=4)
        elif isinstance(locator, MaxNLocator):
            locator.set_params(nbins=3)
    return panels


def _front(shown: optuna.Study, names: list[str]) -> Any:
    """Draw the trials by two or three objectives, with the Pareto front marked."""
    from optuna.visualization import matplotlib as plots

    axes = plots.plot_pareto_front(shown, target_names=names)
    if len(names) == 2:  # in three dimensions matplotlib has no logarithmic axes
        for objective, side in enumerate("xy"):
            fit_scale(axes, _values(shown, objective), side, _DECADE)
    return axes


def _values(study: optuna.Study, objective: int) -> list[float]:
    return [t.values[objective] for t in study.get_trials(deepcopy=False) if t.values]


def _make_plain(figure: Any) -> None:
    """Make a figure of Optuna's white, with a light grid and without titles: the page has captions."""
    figure.suptitle("")
    for axes in figure.axes:
        axes.set(facecolor="white", title="")
        axes.set_title("", loc="left")
        axes.grid(color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        for spine in axes.spines.values():
            spine.set(visible=True, color="#888888", linewidth=0.8)
