"""An application of the shape that many know: data, module, callbacks and loggers as groups, a search for Optuna."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import quick

from sweep import load_study
from sweep.tracking.folders import StudyFolder
from sweep.trial.application import JOB_FOLDER

pytestmark = pytest.mark.process

EXAMPLE = Path(__file__).parents[2] / "examples" / "template"
CHANGED = "override /hydra/sweeper: study # it was: optuna"
N_TRIALS, N_EPOCHS = 12, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example, with the search as it was before its migration beside it."""
    folder = tmp_path_factory.mktemp("template")
    shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("outputs", "multirun"))
    searches = folder / "conf" / "hparams_search"
    before, after = "override /hydra/sweeper: optuna", (searches / "rings.yaml").read_text()
    assert after.count(CHANGED) == 1
    (searches / "stock.yaml").write_text(after.replace(CHANGED, before))
    return folder


@pytest.fixture(scope="module")
def stock(folder: Path) -> dict[str, Any]:
    """What Hydra's stock sweeper finds."""
    return search(folder, "stock", "hparams_search=stock")


def search(folder: Path, sweep_dir: str, *overrides: str) -> dict[str, Any]:
    """Run a search with one thread, so that its values are always the same. Return its optimization_results.yaml."""
    words = ("-m", *overrides, f"hydra.sweep.dir={sweep_dir}")
    done = quick(folder, *words, module="train.py", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return yaml.safe_load((folder / sweep_dir / "optimization_results.yaml").read_text())


def ours(folder: Path, name: str, *overrides: str) -> dict[str, Any]:
    own = (f"hydra.sweeper.study_name={name}", "hydra.sweeper.tracking.mlflow=false")
    return search(folder, name, "hparams_search=rings", *own, *overrides)


def n_epochs(jobs: list[Path]) -> int:
    """Count the epochs that the application's own logger wrote down, one a line below a heading."""
    return sum(len((job / "metrics.csv").read_text().splitlines()) - 1 for job in jobs)


def test_one_changed_line_finds_what_the_stock_sweeper_finds(folder: Path, stock: dict[str, Any]) -> None:
    """In one process, without a pruner, as the stock sweeper runs. Each trial leaves the same files."""
    assert ours(folder, "ours", "hydra/sweeper/pruner=none") == stock
    study = StudyFolder(folder / "outputs" / "studies" / "ours")
    for number in range(N_TRIALS):
        theirs, own = folder / "stock" / str(number), study.trial(number).path / JOB_FOLDER
        assert (own / "metrics.csv").read_text() == (theirs / "metrics.csv").read_text()
        assert {path.name for path in own.iterdir()} == {path.name for path in theirs.iterdir()}


def test_a_callback_that_reports_halves_the_epochs(folder: Path, stock: dict[str, Any]) -> None:
    """The trials are the same, but for those that are pruned, and so is the best of them."""
    pruner = ("hydra/sweeper/pruner=asha", "hydra.sweeper.pruner.min_resource=2")
    found = ours(folder, "pruned", "callbacks=report", f"hydra.sweeper.max_epochs={N_EPOCHS}", *pruner)
    assert found == stock
    study = StudyFolder(folder / "outputs" / "studies" / "pruned")
    trials = load_study(study.path).results
    assert {trial.state for trial in trials} == {"complete", "pruned"}
    theirs = n_epochs([folder / "stock" / str(number) for number in range(N_TRIALS)])
    assert theirs == N_TRIALS * N_EPOCHS
    assert n_epochs([study.trial(trial.number).path / JOB_FOLDER for trial in trials]) <= theirs / 2
