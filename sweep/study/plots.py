"""Pictures of a study, by Optuna: its history, and values against parameters."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState


def draw_plots(study: optuna.Study, folder: Path) -> None:
    """PNGs in `folder`; none before two trials are complete. Takes about a second, half of it imports."""
    trials = study.get_trials(deepcopy=False)
    if sum(t.state == TrialState.COMPLETE for t in trials) < 2:
        return
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    kinds: dict[str, Callable[[optuna.Study], Any]] = {"history": plots.plot_optimization_history}
    if len(study.directions) > 1:
        kinds = {"pareto_front": plots.plot_pareto_front} if len(study.directions) <= 3 else {}
    elif any(t.params for t in trials):
        kinds["slices"] = plots.plot_slice
    folder.mkdir(exist_ok=True)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it has opinions on texts that are numbers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its plots experimental, and matplotlib has its own to say
        for name, plot in kinds.items():
            figure = np.atleast_1d(plot(study))[0].figure
            figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
            pyplot.close(figure)
