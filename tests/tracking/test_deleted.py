"""What was deleted in MLflow is not written to, and the printed commands bring it back."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import ViewType
from processes import with_store
from sqlalchemy.exc import OperationalError
from stores import Study, assert_uploaded, embedded, rows, run_of

from sweep import sync
from sweep.tracking.folders import RunFolder
from sweep.tracking.mlflow_bulk import CompleteRun, Tables
from sweep.tracking.mlflow_client import Uploader
from sweep.tracking.store import Store
from sweep.tracking.study_upload import StudyUpload
from sweep.utils.errors import DeletedInStore

pytestmark = pytest.mark.slow  # MLflow, or many compositions


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Under a name that a shell takes apart unless it is quoted."""
    outputs = tmp_path / "it's my $HOME"
    outputs.mkdir()
    return with_store(outputs)


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


@pytest.mark.process
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
        assert_uploaded(study, outputs / "mlflow.db")


@pytest.mark.parametrize("kind", ["experiment", "parent", "child"])
def test_a_process_whose_store_changes_writes_nothing_until_it_is_back(
    kind: str, outputs: Path, client: MlflowClient
) -> None:
    study, uploader = Study(outputs, "begun"), Uploader(embedded(outputs))
    run = study.trial(0)
    assert uploader.push(run)
    assert uploader.push(study.folder.run)
    delete(client, kind, study)
    if kind == "parent":
        run = study.trial(1)
    study.epochs(run)
    study.end(run)
    before = rows(outputs / "mlflow.db")
    with pytest.raises(DeletedInStore, match="deleted in MLflow; bring it back with: "):
        uploader.push(run)
    assert rows(outputs / "mlflow.db") == before
    if kind == "experiment":
        (experiment,) = client.search_experiments(ViewType.DELETED_ONLY)
        client.restore_experiment(experiment.experiment_id)
    for run_id, *_ in before["runs"]:
        client.restore_run(run_id)
    if kind == "parent":
        study.end(study.folder.trial(0))
    study.end(study.folder.run)
    assert all(uploader.push(run) for run in (*study.folder.runs(), study.folder.run))
    assert_uploaded(study, outputs / "mlflow.db")


def test_a_password_is_not_printed(monkeypatch: pytest.MonkeyPatch, outputs: Path) -> None:
    uploader = Uploader(embedded(outputs))
    monkeypatch.setattr(type(uploader._client), "tracking_uri", "postgresql://me:secret@host/db")
    line = str(uploader._runs._deleted("run", "mine", "12"))
    assert "secret" not in line
    assert "in place of ***" in line


Contents = dict[str, list[tuple[Any, ...]]]


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, outputs: Path) -> Store:
    if request.param == "sqlite":
        return embedded(outputs)
    return Store(request.getfixturevalue("postgresql"), outputs / "mlartifacts")


def contents(store: Store) -> Contents:
    """All rows that belong to runs, and the experiments."""
    assert store.uri is not None
    tables = (*rows_of_runs, "experiments")
    with sqlalchemy.create_engine(store.uri, poolclass=sqlalchemy.NullPool).connect() as connection:
        return {
            table: sorted((tuple(row) for row in connection.exec_driver_sql(f"SELECT * FROM {table}")), key=repr)
            for table in tables
        }


rows_of_runs = ("runs", "metrics", "latest_metrics", "params", "tags", "datasets", "inputs", "input_tags")


def collect(client: MlflowClient, experiment: str) -> None:
    """As `mlflow gc` does. In SQLite the next experiment gets the same id."""
    client.delete_experiment(experiment)
    store = client._tracking_client.store
    for run in client.search_runs([experiment], run_view_type=ViewType.ALL):
        store._hard_delete_run(run.info.run_id)
    store._hard_delete_experiment(experiment)
    client.create_experiment("of somebody else")


@pytest.mark.process
def test_whole_runs_are_written_only_below_what_is_there(store: Store, outputs: Path) -> None:
    assert store.uri is not None
    client, uploader = MlflowClient(store.uri), Uploader(store)
    for kind in ("experiment", "parent", "collected"):
        study = Study(outputs, kind)
        of_study = StudyUpload(study.folder, lambda: uploader)
        for number in range(3):
            study.whole_trial(number)
        study.end(study.folder.run)
        of_study.push_news(lambda: False)
        parent = run_of(study.folder.path, store.uri)
        assert len(client.search_runs([parent.info.experiment_id])) == 4
        new = [study.whole_trial(number) for number in (3, 4)]
        if kind == "collected":
            collect(client, parent.info.experiment_id)
        else:
            delete(client, kind, study)
        before = contents(store)
        assert uploader.push_complete(new) == set()
        assert contents(store) == before
        if kind != "collected":
            problem = of_study.finish(lambda n_left: None)
            assert problem is not None
            assert f"2 of its runs: {kind.replace('parent', 'run')} '" in problem
            assert "restore" in problem
            assert contents(store) == before
        if kind == "experiment":
            client.restore_experiment(parent.info.experiment_id)
        elif kind == "parent":
            client.restore_run(parent.info.run_id)
        assert of_study.finish(lambda n_left: None) is None
        parent = run_of(study.folder.path, store.uri)
        found = client.search_runs([parent.info.experiment_id])
        children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert (len(found), len(children)) == (6, 5)


@pytest.mark.process
def test_nobody_deletes_while_whole_runs_are_written(
    store: Store, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.uri is not None
    patience = {} if store.uri.startswith("postgresql") else {"timeout": 0.01}
    other = sqlalchemy.create_engine(store.uri, poolclass=sqlalchemy.NullPool, connect_args=patience)
    refused: list[str] = []

    def try_to_delete(self: Tables, connection: object, run: CompleteRun) -> str:
        for table in ("experiments", "runs"):
            with pytest.raises(OperationalError), other.begin() as deleting:  # noqa: PT012
                if not patience:
                    deleting.exec_driver_sql("SET LOCAL lock_timeout = '10ms'")
                deleting.exec_driver_sql(f"UPDATE {table} SET lifecycle_stage = 'deleted'")
            refused.append(table)
        return make_dataset(self, connection, run)

    make_dataset: Any = Tables._dataset
    monkeypatch.setattr(Tables, "_dataset", try_to_delete)
    study, uploader = Study(outputs, "held"), Uploader(store)
    runs = [study.whole_trial(number) for number in range(3)]
    assert uploader.push_complete(runs) == set(runs)
    assert refused == ["experiments", "runs"]


@pytest.mark.process
def test_whole_runs_are_written_only_to_the_tables_that_were_compared(
    store: Store, outputs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A migration; a table that nobody writes to, which SQLite cannot tell apart; a column more."""
    assert store.uri is not None
    database = sqlalchemy.create_engine(store.uri, poolclass=sqlalchemy.NullPool)
    study, uploader, next_number = Study(outputs, "changing"), Uploader(store), 0

    def more() -> list[RunFolder]:
        nonlocal next_number
        next_number += 3
        return [study.whole_trial(number) for number in range(next_number - 3, next_number)]

    def after(*changes: str) -> list[RunFolder]:
        """Three new runs, sent after the change."""
        with database.begin() as connection:
            revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
            for change in changes:
                connection.exec_driver_sql(change)
        runs, before = more(), contents(store)
        assert uploader.push_complete(runs) == set(), changes
        assert contents(store) == before
        assert "MLflow's tables have changed; runs are sent one by one" in caplog.text
        caplog.clear()
        with database.begin() as connection:
            connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")
        return runs

    runs = more()
    assert uploader.push_complete(runs) == set(runs)
    runs = after("UPDATE alembic_version SET version_num = 'another'")
    assert uploader.push_complete(runs) == set()
    assert all(uploader.push(run) for run in runs)
    uploader = Uploader(store)
    assert uploader.push_complete(runs := more()) == set(runs)
    if store.uri.startswith("sqlite"):
        runs = after("CREATE TABLE of_others (id INTEGER)")
        assert uploader.push_complete(runs) == set(runs)
    runs = after("ALTER TABLE metrics ADD COLUMN unit TEXT")
    assert uploader.push_complete(runs) == {runs[0]}
    assert StudyUpload(study.folder, lambda: uploader).finish(lambda n_left: None) is None
    assert [len(contents(store)[table]) for table in ("runs", "inputs")] == [1 + next_number, next_number]
