"""Pictures of a study as PNGs, by Optuna: its history, and values against parameters."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from sweep.study.reading import as_shown, has_value

FEWEST_FOR_IMPORTANCES = 10  # trials with a value


def draw_plots(study: optuna.Study, folder: Path, dpi: int = 120) -> None:
    """In `folder`; none before two trials have a value. Takes about a second, half of it imports."""
    trials = study.get_trials(deepcopy=False)
    n_values = sum(map(has_value, trials))
    if n_values < 2:
        return
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    shown = as_shown(study)
    kinds: dict[str, Callable[[], Any]] = {"history": lambda: _history(study)}
    if len(study.directions) > 1:
        kinds = {"pareto_front": lambda: plots.plot_pareto_front(shown)} if len(study.directions) <= 3 else {}
    elif any(t.params for t in trials):
        kinds["slices"] = lambda: plots.plot_slice(shown)
        if n_values >= FEWEST_FOR_IMPORTANCES:
            kinds["importances"] = lambda: plots.plot_param_importances(shown)
    folder.mkdir(exist_ok=True)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it has opinions on texts that are numbers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its plots experimental, and matplotlib has its own to say
        for name, plot in kinds.items():
            figure = np.atleast_1d(plot())[0].figure
            figure.savefig(folder / f"{name}.png", dpi=dpi, bbox_inches="tight")
            pyplot.close(figure)


def _history(study: optuna.Study) -> Any:
    """The best so far is of complete trials; the pruned stand beside them."""
    from optuna.visualization import matplotlib as plots

    axes = plots.plot_optimization_history(study)
    pruned = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.PRUNED and t.values]
    axes.scatter(
        [t.number for t in pruned],
        [t.values[0] for t in pruned],
        s=18,
        facecolors="none",
        edgecolors="grey",
        label="Pruned",
    )
    axes.legend()
    return axes
