"""Machines without a shared output_dir: what they train is in MLflow, goes on elsewhere, and can be looked at."""

import gc
import signal
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from machines import other_machines
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from processes import quick, quick_start
from study_folders import folder_of
from waiting import wait_until

from sweep import load_study, run_study, write_report
from sweep.execution.node import announce_stop, heeding_stops
from sweep.tracking import journal
from sweep.tracking.mlflow_runs import RESTARTED_TAG
from sweep.utils.errors import ConfigError, Interrupted

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings(
        "ignore:.*psycopg.Connection.*was deleted while still open"
    ),  # of Optuna's and MLflow's pools
]

__all__ = ["other_machines"]

TESTS = str(Path(__file__).parents[1])
BASE = ["experiment=debug", "trainer.epochs=3"]
SETTINGS = {"n_trials": 2, "n_jobs": 2, "study_name": "s", "pruner": "none"}


def test_such_a_machine_uploads_its_runs(
    other_machines: Path,
    postgresql: str,
    another_postgresql: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = another_postgresql.replace("+psycopg", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    run_study(BASE, storage=postgresql, **SETTINGS)
    assert not (tmp_path / "outputs/studies/s/trials/0").exists(), "the folder is not shared"
    study = load_study("s", storage=postgresql)
    trials, (parent, *others) = runs_in(store), [run for run in runs_in(store) if "trial" not in run.data.tags]
    trials = {int(run.data.tags["trial"]): run for run in trials if "trial" in run.data.tags}
    assert others == []
    assert {run.data.tags["mlflow.parentRunId"] for run in trials.values()} == {parent.info.run_id}
    assert {n: run.data.metrics["best/val_loss"] for n, run in trials.items()} == {
        t.number: t.value for t in study.results
    }
    assert study.status.elsewhere == {"node0": [0, 1]}
    best = study.best
    assert best is not None
    assert min(best.curves["val/loss"].values) == best.value, "of MLflow"
    with pytest.raises(
        ConfigError, match=rf"^trial: the files of trial {best.number} \(on host 'node0'\) are not here"
    ):
        best.load_model()
    page = write_report(study, storage=postgresql, show=True)
    assert "Not here:  the files of trials 0, 1 (on host 'node0')" in capsys.readouterr().out
    assert f"trial {best.number}, the best" in page.read_text()


def test_a_command_has_all_that_such_machines_trained_if_they_copy_it(
    other_machines: Path, postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then MLflow's store may be the file in its output_dir."""
    monkeypatch.chdir(tmp_path)
    study = run_study(BASE, storage=postgresql, artifacts="copies", seeds=2, **SETTINGS)
    assert study.status.elsewhere == {}
    assert study.best is not None
    assert study.best.load_model().predict([[0.5]]).shape == (1,)
    runs = [run for run in runs_in(f"sqlite:///{tmp_path}/outputs/mlflow.db") if "trial" in run.data.tags]
    assert sorted((run.data.tags["trial"], run.data.tags["replicate"], run.info.status) for run in runs) == [
        (trial, replicate, "FINISHED") for trial in "01" for replicate in "01"
    ]


@pytest.mark.parametrize("storage", ["postgresql", None])
def test_such_a_machine_is_refused_if_its_runs_would_be_lost(
    storage: str | None,
    other_machines: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    url = None if storage is None else request.getfixturevalue(storage)
    key, remedy = (
        ("storage", r"postgresql\+psycopg://") if url is None else ("artifacts", "MLFLOW_TRACKING_URI=http://")
    )
    with pytest.raises(ConfigError, match=rf"^hydra.sweeper.{key}: host 'node0' does not share .*{remedy}"):
        run_study(BASE, storage=url, **SETTINGS)
    assert load_study("s", storage=url).trials().empty, "no trial was lost"


@pytest.mark.parametrize("kept", ["copies", "MLflow"])
def test_a_trial_survives_its_machine(kept: str, postgresql: str, another_postgresql: str, tmp_path: Path) -> None:
    """With copies, it goes on where it was. Without, it begins anew, and MLflow says so of the run before."""
    here, there = tmp_path / "here", tmp_path / "there"
    store = another_postgresql.replace("+psycopg", "")
    command = ["-m", "trainer=function", "trainer.call=functions.killed", "trainer.epochs=6", "+x=1.0", "+saves=true"]
    command += ["hydra/sweeper/pruner=none", '+search.x="choice(1.0,2.0)"', "hydra.sweeper.n_trials=2"]
    command += [f"+trace={tmp_path / 'trace'}", "hydra.sweeper.study_name=s", f"hydra.sweeper.storage={postgresql}"]
    command += [f"hydra.sweeper.artifacts={tmp_path / 'copies'}"] if kept == "copies" else []
    own: Any = {"SWEEP_TARGETS": "functions.*", "PYTHONPATH": TESTS, "MLFLOW_TRACKING_URI": store}
    assert runs_in(store) == []  # which makes the tables
    for folder in (here, there):
        folder.mkdir()
    with quick_start(here, *command, **own) as process:
        wait_until((here / "here").exists, process)
        if kept == "copies":
            copies = next((tmp_path / "copies").iterdir())
            saved = folder_of(here).trial(1).checkpoint.read_bytes()  # after epoch 4
            copied = copies / "1" / "checkpoint.pt"
            wait_until(lambda: copied.exists() and copied.read_bytes() == saved, process)
        wait_until(lambda: bool(named(store, "1")), process)
        process.send_signal(signal.SIGKILL)
    (there / "go").touch()
    silence(postgresql)
    done = quick(there, *command, **own)
    assert (done.returncode, done.stderr) == (0, "")
    trace = [line for line in (tmp_path / "trace").read_text().splitlines() if line.startswith("1 ")]
    epochs = [1, 2, 3, 4, 5, 6] if kept == "copies" else [1, 2, 3, 4, 1, 2, 3, 4, 5, 6]
    assert [int(line.split()[1]) for line in trace] == epochs
    runs = {run.info.status: run for run in named(store, "1")}
    assert sorted(runs) == (["FINISHED"] if kept == "copies" else ["FINISHED", "KILLED"])
    finished = runs["FINISHED"].info.run_id
    assert [p.step for p in MlflowClient(store).get_metric_history(finished, "val/loss")] == [1, 2, 3, 4, 5, 6]
    if kept == "MLflow":
        assert runs["KILLED"].data.tags[RESTARTED_TAG] == finished
        return
    done = quick(here, *command, **own)
    assert (done.returncode, done.stderr) == (0, "")
    assert journal.status(folder_of(here).trial(1).journal) == "FINISHED"
    assert len(named(store, "1")) == 1


def test_a_stop_reaches_such_a_machine(
    other_machines: Path, postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = ["experiment=debug", "trainer.epochs=100000", "data.n=96", "tracking=off"]
    handle = run_study(base, storage=postgresql, wait=False, show=False, **SETTINGS)

    wait_until((other_machines / "worker-0").exists, what="a worker")
    storage = RDBStorage(postgresql)
    (study,) = storage.get_all_studies()
    wait_until(lambda: any(t.intermediate_values for t in storage.get_all_trials(study._study_id)), what="an epoch")
    handle.stop()
    with pytest.raises(Interrupted):
        handle.result()
    (trial,) = storage.get_all_trials(study._study_id)
    storage.engine.dispose()
    del handle
    gc.collect()  # closes the study's own connections
    assert trial.state == TrialState.WAITING, "it was saved and given back"


def test_two_commands_that_are_stopped_at_once_both_stop_their_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.execution.node._LOOK_EVERY_S", 0.01)
    study = optuna.create_study()
    plans: list[Any] = [
        SimpleNamespace(name=study.study_name, launch=name, stop_request=tmp_path / name) for name in ("a", "b", "c")
    ]
    announce_stop(study, plans[0])
    announce_stop(study, plans[1])
    with ExitStack() as heeding:
        for plan in plans:
            heeding.enter_context(heeding_stops(plan, study._storage))
        for plan in plans[:2]:
            wait_until(plan.stop_request.exists, what=f"the stop of {plan.launch}")
    assert not plans[2].stop_request.exists()


def test_a_second_machine_is_refused_if_each_would_have_a_part_of_the_runs(postgresql: str, tmp_path: Path) -> None:
    command = ["-m", *BASE, "hydra.sweeper.study_name=s", f"hydra.sweeper.storage={postgresql}"]
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    assert quick(here, *command, "hydra.sweeper.n_trials=1").returncode == 0
    refused = quick(there, *command, "hydra.sweeper.n_trials=2")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: hydra.sweeper.artifacts: host ")
    assert "add MLFLOW_TRACKING_URI=http://host:5000" in line
    assert quick(there, *command, "hydra.sweeper.n_trials=2", "tracking=off").returncode == 0, "nothing is lost"


def silence(storage: str) -> None:
    """Make the heartbeats of all workers old."""
    opened = RDBStorage(storage)
    with opened.engine.begin() as connection:
        assert connection.exec_driver_sql("UPDATE sweep_workers SET heartbeat = heartbeat - 80").rowcount == 1
    opened.engine.dispose()


def runs_in(store: str) -> list[Run]:
    client = MlflowClient(store)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def named(store: str, trial: str) -> list[Run]:
    """The runs of a trial in MLflow."""
    return [run for run in runs_in(store) if run.data.tags.get("trial") == trial]
