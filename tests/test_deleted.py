"""What was deleted in MLflow is not written to, and the printed commands bring it back."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from processes import empty_store
from stores import Study, assert_mirrored, embedded, rows, run_of

from sweep import sync
from sweep.errors import DeletedInStore
from sweep.record.mlflow import Mirror


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Under a name that a shell takes apart unless it is quoted."""
    outputs = tmp_path / "it's my $HOME"
    outputs.mkdir()
    shutil.copy(empty_store(), outputs / "mlflow.db")
    return outputs


@pytest.fixture
def client(outputs: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{outputs}/mlflow.db")


def finished(outputs: Path, name: str, n_trials: int = 2) -> Study:
    study = Study(outputs, name)
    for number in range(n_trials):
        study.whole_trial(number)
    study.end(study.folder.run)
    return study


def run_at_once(commands: list[str]) -> None:
    """As pasted into shells; each must succeed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shells = [subprocess.Popen(command, shell=True, env=os.environ | {"PATH": path}) for command in commands]
    assert [shell.wait(120) for shell in shells] == [0] * len(shells)


def delete(client: MlflowClient, kind: str, study: Study) -> None:
    uri = client.tracking_uri
    run = run_of((study.folder.trial(0) if kind == "child" else study.folder.run).path, uri)
    if kind == "experiment":
        client.delete_experiment(run.info.experiment_id)
    else:
        client.delete_run(run.info.run_id)


def test_the_printed_commands_bring_back_what_was_deleted(
    outputs: Path, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = {kind: finished(outputs, f"a {kind}") for kind in ("experiment", "parent", "child")}
    assert sync.main([str(outputs)]) == 0
    for kind, study in studies.items():
        delete(client, kind, study)
        study.whole_trial(2)
    before = rows(outputs / "mlflow.db")
    capsys.readouterr()
    assert sync.main([str(studies["experiment"].folder.path)]) == 1
    assert sync.main([str(studies["parent"].folder.path)]) == 1
    shown = capsys.readouterr()
    assert [line.split()[:3] for line in shown.out.splitlines()] == [["0", "of", "4"], ["2", "of", "4"]]
    assert rows(outputs / "mlflow.db") == before
    assert sync.main([str(studies["child"].folder.path)]) == 1
    last = capsys.readouterr()
    assert "3 of 4 tracked runs" in last.out
    lines = (shown.err + last.err).splitlines()
    assert len(lines) == 3  # one each, for however many runs
    commands = [line.partition("with:  ")[2] for line in lines]
    *restore, run_id = commands[2].split()[-6:]
    assert restore == ["-m", "mlflow", "runs", "restore", "--run-id"]
    run_at_once(commands[:2])
    client.restore_run(run_id)  # as the third would, which takes seconds to load MLflow
    assert sync.main([str(outputs)]) == 0
    for study in studies.values():
        assert_mirrored(study, outputs / "mlflow.db")


@pytest.mark.parametrize("kind", ["experiment", "parent", "child"])
def test_a_process_whose_store_changes_writes_nothing_until_it_is_back(
    kind: str, outputs: Path, client: MlflowClient
) -> None:
    study, mirror = Study(outputs, "begun"), Mirror(embedded(outputs))
    run = study.trial(0)
    assert mirror.push(run)
    assert mirror.push(study.folder.run)
    delete(client, kind, study)
    if kind == "parent":
        run = study.trial(1)
    study.epochs(run)
    study.end(run)
    before = rows(outputs / "mlflow.db")
    with pytest.raises(DeletedInStore, match="deleted in MLflow; bring it back with: "):
        mirror.push(run)
    assert rows(outputs / "mlflow.db") == before
    if kind == "experiment":
        (experiment,) = client.search_experiments(ViewType.DELETED_ONLY)
        client.restore_experiment(experiment.experiment_id)
    for run_id, *_ in before["runs"]:
        client.restore_run(run_id)
    if kind == "parent":
        study.end(study.folder.trial(0))
    study.end(study.folder.run)
    assert all(mirror.push(run) for run in (*study.folder.runs(), study.folder.run))
    assert_mirrored(study, outputs / "mlflow.db")


def test_a_password_is_not_printed(monkeypatch: pytest.MonkeyPatch, outputs: Path) -> None:
    mirror = Mirror(embedded(outputs))
    monkeypatch.setattr(type(mirror._client), "tracking_uri", "postgresql://me:secret@host/db")
    line = str(mirror._deleted("run", "mine", "12"))
    assert "secret" not in line
    assert "in place of ***" in line
