"""The PNG files of a study's trials."""

from collections.abc import Callable
from pathlib import Path

from sweep.figures.history import draw_history
from sweep.figures.pareto import draw_pareto, has_front
from sweep.figures.slices import draw_slices
from sweep.figures.trials import Trials

# All PNG files that a study or its report may have.
PLOTS = ("history.png", "slices.png", "pareto_front.png", "curves.png", "importances.png")


def draw_plots(trials: Trials, folder: Path, dpi: int = 120) -> list[str]:
    """Draw the plots of a study's trials.

    Args:
        trials: the trials.
        folder: where the plots go. It is created if needed.
        dpi: dots per inch.

    Returns:
        The file names: history.png and slices.png, or with two or three objectives only pareto_front.png. Empty if
        fewer than two trials have a value, or with more than three objectives.
    """
    if len(trials.numbers) < 2:
        return []
    draws: dict[str, Callable[[Trials, Path, int], None]] = {}
    if has_front(trials):
        draws["pareto_front.png"] = draw_pareto
    elif len(trials.objectives) == 1:
        draws["history.png"] = draw_history
        if trials.params:
            draws["slices.png"] = draw_slices
    folder.mkdir(exist_ok=True)
    for name, draw in draws.items():
        draw(trials, folder / name, dpi)
    return [*draws]
