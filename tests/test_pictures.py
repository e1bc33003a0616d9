"""A picture that cannot be drawn decides about nothing else; see sweep/record/plot.py."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from processes import mlflow_runs, only_run, quick, run

from sweep.record import journal
from sweep.record.folder import StudyFolder

if TYPE_CHECKING:
    from test_trial import Trial

SMALL = ("experiment=debug", "trainer.batch_size=16", "trainer.epochs=1")
INLINE = "module://matplotlib_inline.backend_inline"  # as a notebook sets it for all that it starts; not installed here

_LOADED = """
from sweep.record.plot import load_matplotlib
load_matplotlib()
import matplotlib, optuna.visualization, os
print(os.environ["MPLBACKEND"], matplotlib.get_backend(auto_select=False))
"""


def test_a_backend_that_is_missing_keeps_nothing_from_being_drawn(tmp_path: Path) -> None:
    study = run(tmp_path, "-m", *SMALL, "tracking=off", "hydra.sweeper.n_trials=2", MPLBACKEND=INLINE)
    assert (study.returncode, study.stderr) == (0, "")
    assert len([*tmp_path.glob("outputs/studies/*/plots/*.png")]) == 2


@pytest.mark.parametrize("backend", [INLINE, "svg"])
def test_a_users_own_backend_is_kept(backend: str) -> None:
    env = {**os.environ, "MPLBACKEND": backend}
    done = subprocess.run([sys.executable, "-c", _LOADED], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() in ([backend, backend], [INLINE, "None"])


def test_a_run_whose_curves_cannot_be_drawn_is_in_mlflow(
    small_trial: "Trial", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def obstruct(epoch: int, metrics: object) -> None:
        (only_run(tmp_path).path / "curves.png.tmp").mkdir(exist_ok=True)

    outcome = small_trial("tracking=mlflow", report=obstruct)
    assert outcome.mirrored
    assert caplog.messages[-1].startswith("warning: cannot draw the curves (")
    (mirrored,) = mlflow_runs(tmp_path)
    assert mirrored.info.status == "FINISHED"


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
