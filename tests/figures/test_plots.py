"""Pictures: what cannot be drawn decides about nothing else, and what is drawn can be read."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from processes import mlflow_runs, only_run, quick, run

from sweep.figures.curves import Band, draw_bands
from sweep.figures.plots import draw_plots
from sweep.study.shown import shown_trials
from sweep.tracking import journal
from sweep.tracking.curves_plot import draw_curves
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.tracking.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from sweep import Outcome

SMALL = ("experiment=debug", "trainer.batch_size=16", "trainer.epochs=1")
INLINE = "module://matplotlib_inline.backend_inline"  # as a notebook sets it for all that it starts; not installed here

_LOADED = """
from sweep.figures.drawing import import_matplotlib
import_matplotlib()
import matplotlib, optuna.visualization, os
print(os.environ["MPLBACKEND"], matplotlib.get_backend(auto_select=False))
"""


@pytest.mark.process
def test_a_backend_that_is_missing_keeps_nothing_from_being_drawn(tmp_path: Path) -> None:
    study = run(tmp_path, "-m", *SMALL, "tracking=off", "hydra.sweeper.n_trials=2", MPLBACKEND=INLINE)
    assert (study.returncode, study.stderr) == (0, "")
    assert len([*tmp_path.glob("outputs/studies/*/plots/*.png")]) == 2


@pytest.mark.process
@pytest.mark.parametrize("backend", [INLINE, "svg"])
def test_a_users_own_backend_is_kept(backend: str) -> None:
    env = {**os.environ, "MPLBACKEND": backend}
    done = subprocess.run([sys.executable, "-c", _LOADED], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() in ([backend, backend], [INLINE, "None"])


@pytest.mark.process
def test_a_run_whose_curves_cannot_be_drawn_is_in_mlflow(
    small_trial: "Callable[..., Outcome]", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def obstruct(epoch: int, metrics: object) -> None:
        (only_run(tmp_path).path / "curves.png.tmp").mkdir(exist_ok=True)

    outcome = small_trial("tracking=mlflow", report=obstruct)
    assert outcome.uploaded
    assert caplog.messages[-1].startswith("warning: cannot draw the curves (")
    (uploaded,) = mlflow_runs(tmp_path)
    assert uploaded.info.status == "FINISHED"


@pytest.mark.process
def test_a_study_whose_plots_cannot_be_drawn_ends_well(tmp_path: Path) -> None:
    command = ("-m", *SMALL, "tracking=off", "hydra.sweeper.study_name=s")
    folder = StudyFolder(tmp_path / "outputs/studies/s")
    assert quick(tmp_path, *command, "hydra.sweeper.n_trials=1").returncode == 0
    folder.plots.write_text("in the way")
    done = quick(tmp_path, *command, "hydra.sweeper.n_trials=2")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: cannot draw the study's plots (")
    assert journal.status(folder.run.journal) == "FINISHED"
    assert "Train it again" in done.stdout


# Extreme values


STEPS = np.arange(1, 21)
VALUES = {
    "decades": np.geomspace(1e12, 1e-12, 20),
    "equal": np.full(20, 1e12),
    "close": 1e12 + np.arange(20.0),
    "tiny": np.linspace(1e-12, 2e-12, 20),
    "of both signs": np.linspace(-1e12, 1e12, 20),
    "zero": np.zeros(20),
    "one": np.array([3e-12]),
    "none": np.empty(0),
}


def check_readable(figure: "Figure") -> None:
    """The labels of an axis differ, and all points within its limits; lines of one point have a marker."""
    figure.canvas.draw()
    for axes in figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            ticks = [
                tick
                for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
                if min(limits) <= tick.get_loc() <= max(limits)
            ]
            shown = [tick.label1.get_text() for tick in ticks if tick.label1.get_text()]
            assert len(shown) == len(set(shown))
        for line in axes.get_lines():
            x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
            assert line.get_marker() not in ("", "None") or len(x) != 1
            low, high = axes.get_ylim()
            assert ((y >= low) & (y <= high)).all()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> "list[Figure]":
    """Every figure that is written as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figures: list[Figure] = []
    write = FigureCanvasAgg.print_png

    @functools.wraps(write)  # matplotlib looks at what it takes
    def noted(canvas: FigureCanvasAgg, *args: Any, **kwargs: Any) -> None:
        figures.append(canvas.figure)
        write(canvas, *args, **kwargs)

    monkeypatch.setattr(FigureCanvasAgg, "print_png", noted)
    return figures


@pytest.mark.parametrize("values", VALUES)
def test_curves_are_readable(values: str, tmp_path: Path, drawn: "list[Figure]") -> None:
    folder = RunFolder(tmp_path)
    losses = VALUES[values].tolist()
    with Journal(folder.journal) as record:
        curves = {"train/loss": losses, "val/loss": [2 * loss for loss in losses], "lr": losses}
        record.metrics(STEPS[: len(losses)].tolist(), curves)
    draw_curves(folder.journal, folder.curves)
    check_readable(drawn[-1])


@pytest.mark.parametrize("values", [name for name in VALUES if name != "none"])
def test_bands_of_a_report_are_readable(values: str, tmp_path: Path, drawn: "list[Figure]") -> None:
    y = VALUES[values]
    band = Band(STEPS[: len(y)], y, y, y, 1)
    draw_bands({"val/loss": {"trial 1": band}}, tmp_path / "x.png", 50)
    check_readable(drawn[-1])


@pytest.mark.parametrize("values", VALUES)
def test_plots_of_a_study_are_readable(values: str, tmp_path: Path, drawn: "list[Figure]") -> None:
    long = "a-very-long-name-of-an-option-" * 3
    ranges = {"lr": FloatDistribution(1e-12, 1e12, log=True), "kind": CategoricalDistribution(["a", long])}
    study = optuna.create_study()
    for n, value in enumerate(VALUES[values]):
        params = {"lr": 10.0 ** (n - 10), "kind": ("a", long)[n % 2]}
        study.add_trial(create_trial(value=value, params=params, distributions=ranges))
    study.add_trial(create_trial(state=TrialState.FAIL))
    assert len(draw_plots(shown_trials(study), tmp_path / "plots", 50)) == (2 if len(VALUES[values]) > 1 else 0)
    for figure in drawn:
        check_readable(figure)
