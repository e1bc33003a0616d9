"""sweep/study/best_model.py: a study's best trial ends with what a run has, without being trained again."""

import shutil
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from numpy.testing import assert_array_equal
from processes import empty_store, make_store
from stores import run_of

from sweep import load_model, run_study, sync
from sweep.study.study_result import StudyResult
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder, StudyFolder

pytestmark = pytest.mark.process  # each study starts its upload process

DIABETES = ["data=diabetes", "trainer.epochs=2", "model.widths=[4]", "scheduler=constant", "trainer.batch_size=64"]
OFF = [*DIABETES, "tracking=off"]
FEW: dict[str, Any] = {"sampler": "random", "pruner": "none", "study_name": "s"}
MEASURED = pd.DataFrame(np.random.default_rng(0).normal(0, 0.05, (7, 10)))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def of_best(study: StudyResult, replicate: int | None = None) -> RunFolder:
    assert study.best is not None
    return StudyFolder(study.folder).trial(study.best.number, replicate)


def described(study: StudyResult) -> list[str]:
    """The runs that have predictions, by their places in the study."""
    found = StudyFolder(study.folder).trials.rglob("predictions.parquet")
    return sorted(str(path.parent.relative_to(study.folder / "trials")) for path in found)


def measured(run: RunFolder) -> float:
    """The mean squared error on the test split, as the run recorded it."""
    (end,) = [record for record in journal.records(run.journal, "end") if record["values"]]
    return end["values"]["test/mse"][0]


def new_data() -> pd.DataFrame:
    return MEASURED.set_axis(list(load_model("s").features), axis="columns")


@pytest.mark.parametrize("settings", [{}, {"pack": 4}, {"seeds": 2}, {"folds": 2, "pack": 4}])
def test_the_best_trial_alone_has_predictions(settings: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    study = run_study(OFF, n_trials=3, **FEW, **settings)
    assert capfd.readouterr() == ("", "")
    has_several = bool({"seeds", "folds"} & settings.keys())
    best = of_best(study, 0 if has_several else None)
    assert described(study) == [str(best.path.relative_to(study.folder / "trials"))]
    found = pd.read_parquet(best.predictions)
    assert len(found) == 66
    assert np.square(found.prediction - found.truth).mean() == pytest.approx(measured(best), rel=1e-5)
    from_file = load_model("s").module.state_dict()
    for name, weight in load_model(best.path).module.state_dict().items():
        assert_array_equal(weight, from_file[name])
    assert best.signature.exists()


def test_a_study_of_a_task_of_ones_own_has_no_such_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", "torch_datasets.*")
    own_kind = ("data._target_=torch_datasets.dicts", *(f"~data.{key}" for key in ("n", "noise", "domain", "seed")))
    linear = ("model=linear", "+model.in_features=1", "+model.out_features=1", "scheduler=constant")
    task = ("task._target_=torch_datasets.Weighted", "~task.loss", "tracking=off", "trainer.epochs=1")
    study = run_study([*own_kind, *linear, *task], n_trials=1, **FEW)
    assert of_best(study).best.exists()
    assert described(study) == []


def test_what_is_missing_is_one_line_and_the_same_command_makes_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = run_study(OFF, n_trials=2, **FEW)
    best = of_best(study)
    best.predictions.unlink()
    best.predictions.with_name("predictions.parquet.tmp").mkdir()  # in the way
    assert run_study(OFF, n_trials=2, **FEW).results == study.results
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: the best trial lacks predictions.parquet or its model in MLflow (predictions.parq")
    best.predictions.with_name("predictions.parquet.tmp").rmdir()
    kept = best.path.rename(tmp_path / "kept")
    run_study(OFF, n_trials=2, **FEW)
    (line,) = capfd.readouterr().err.splitlines()
    assert "whose files are not in" in line
    kept.rename(best.path)
    run_study(OFF, n_trials=2, **FEW)
    assert capfd.readouterr().err == ""
    assert best.predictions.is_file()


class Store:
    """The tracking store below a folder, and its models."""

    def __init__(self, cwd: Path, name: str = "mlflow.db") -> None:
        self.uri = f"sqlite:///{cwd}/outputs/{name}"
        self.client = MlflowClient(self.uri)

    def versions(self, name: str = "sugar") -> dict[str, str]:
        """The runs of a registered model, by version."""
        return {str(one.version): str(one.run_id) for one in self.client.search_model_versions(f"name = '{name}'")}

    def run_id(self, folder: RunFolder) -> str:
        return run_of(folder.path, self.uri).info.run_id

    def artifacts(self, folder: RunFolder) -> set[str]:
        return {file.path for file in self.client.list_artifacts(self.run_id(folder))}

    def answer(self, uri: str, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", self.uri)
        try:
            return mlflow.pyfunc.load_model(uri).predict(new_data())
        finally:
            monkeypatch.delenv("MLFLOW_TRACKING_URI")


def test_the_model_of_the_best_goes_to_mlflow_once_and_a_new_best_gets_the_next_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(make_store(tmp_path))
    registered, search = [*DIABETES, "tracking.register=sugar"], {"optimizer.lr": "1e-5,1e-2"}
    grid = {**FEW, "sampler": "grid"}
    before = of_best(run_study([*DIABETES, "tracking.model=false"], search, n_trials=1, **grid))
    assert store.artifacts(before) == {"config.yaml", "overrides.yaml", "best.pt", "predictions.parquet"}
    run_study(registered, search, n_trials=1, **grid)
    assert store.artifacts(before) == {"config.yaml", "overrides.yaml", "best.pt", "predictions.parquet", "model"}
    assert store.versions() == {"1": store.run_id(before)}
    own = load_model("s").predict(new_data())
    for uri in (f"runs:/{store.run_id(before)}/model", "models:/sugar/1"):
        assert_array_equal(store.answer(uri, monkeypatch), own)
    downloaded = load_model(store.run_id(before), output_dir="empty", tracking_uri=store.uri)
    assert_array_equal(downloaded.predict(new_data()), own)
    size = before.journal.stat().st_size
    run_study(registered, search, n_trials=1, **grid)
    assert (before.journal.stat().st_size, len(store.versions())) == (size, 1)

    kept = before.predictions.read_bytes()
    after = of_best(run_study(registered, search, n_trials=2, **grid))
    assert (before.path.name, after.path.name) == ("0", "1")
    assert store.versions() == {"1": store.run_id(before), "2": store.run_id(after)}
    assert before.predictions.read_bytes() == kept
    assert "model" in store.artifacts(before)
    assert "model" in store.artifacts(after)
    assert_array_equal(store.answer("models:/sugar/2", monkeypatch), load_model("s").predict(new_data()))
    assert run_of(after.path, store.uri).info.status == "FINISHED"

    other = Store(tmp_path, "other.db")
    shutil.copy(empty_store(), tmp_path / "outputs" / "other.db")
    assert sync.main(["outputs", "--uri", other.uri]) == 0
    assert other.versions() == {"1": other.run_id(after)}
    assert "model" not in other.artifacts(before)


def test_without_a_test_split_the_same_command_writes_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", "torch_datasets.*")
    own_kind = ("data._target_=torch_datasets.curve", "+data.test=false", "data.n=68", "~data.domain", "~data.seed")
    overrides = [*own_kind, "scheduler=constant", "trainer.epochs=1", "trainer.batch_size=16", "tracking=off"]
    best = of_best(run_study(overrides, n_trials=1, **FEW))
    assert best.signature.exists()
    assert not best.predictions.exists()
    written = best.signature.stat()
    run_study(overrides, n_trials=1, **FEW)
    assert best.signature.stat() == written
