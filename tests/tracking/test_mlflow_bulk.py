"""sweep/tracking/mlflow_bulk.py writes to MLflow's tables what its client writes, and as safely."""

import math
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from processes import go_at_once
from sqlalchemy.exc import OperationalError
from stores import Study, assert_uploaded, embedded, outcomes_of_killed, rows

from sweep.tracking.folders import StudyFolder
from sweep.tracking.journal import Journal
from sweep.tracking.mlflow_bulk import Tables
from sweep.tracking.mlflow_client import Uploader
from sweep.tracking.store import Store
from sweep.tracking.study_upload import StudyUpload

pytestmark = pytest.mark.slow  # MLflow, or many compositions

TABLES = ("runs", "params", "tags", "metrics", "latest_metrics", "inputs", "input_tags", "datasets")
ARTIFACTS_OF = {4: ["plots"], 5: ["plots"]}  # of some trials
Contents = dict[str, list[Any]]


def contents(store: Store, experiment: str) -> Contents:
    """All that a store has of an experiment, without the ids that differ from store to store."""
    assert store.uri is not None
    engine = sqlalchemy.create_engine(store.uri, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        found = {
            table: [dict(row) for row in connection.exec_driver_sql(f"SELECT * FROM {table}").mappings()]
            for table in (*TABLES, "experiments")
        }
    (of_experiment,) = (row for row in found.pop("experiments") if row["name"] == experiment)
    names = {
        row["run_uuid"]: row["value"]  # uids of runs, by id
        for row in found["tags"]
        if row["key"] == "sweep.uid"
    }
    own = {row["run_uuid"] for row in found["runs"] if row["experiment_id"] == of_experiment["experiment_id"]}
    inputs = {row["input_uuid"]: row["destination_id"] for row in found["inputs"]}
    for table in TABLES[:5]:
        found[table] = [row for row in found[table] if row["run_uuid"] in own]
    found["inputs"] = [row for row in found["inputs"] if row["destination_id"] in own]
    found["input_tags"] = [row for row in found["input_tags"] if inputs[row["input_uuid"]] in own]
    found["datasets"] = [row for row in found["datasets"] if row["experiment_id"] == of_experiment["experiment_id"]]
    names |= {row["dataset_uuid"]: f"data set {row['digest']}" for row in found["datasets"]}
    names |= {key: f"input of {names[run]}" for key, run in inputs.items()}
    artifacts: list[Any] = []
    for run in found["runs"]:
        assert run["artifact_uri"] == f"{of_experiment['artifact_location']}/{run['run_uuid']}/artifacts"
        root = Path(run.pop("artifact_uri").removeprefix("file://"))
        files = [path for path in root.rglob("*") if path.is_file()]
        artifacts += [
            (names[run["run_uuid"]], str(path.relative_to(root)), path.read_bytes(), path.stat().st_mode)
            for path in files
        ]
    for table in TABLES:
        for row in found[table]:
            row.pop("experiment_id", None)
            for column, value in row.items():
                row[column] = names.get(value, value) if isinstance(value, str) else value
    return {
        "n": [len(own)],
        "artifacts": sorted(artifacts),
        **{table: sorted((sorted(row.items()) for row in found[table]), key=repr) for table in TABLES},
    }


def various(output_dir: Path) -> Study:
    """A finished study of trials that differ in all that a journal may hold."""
    study = Study(output_dir, "various")
    for number in range(10):
        dataset = {"name": "none", "digest": str(number // 5), "source": {"uri": "generated"}, "profile": {"n": 3}}
        run = study.trial(
            number // 2 + 5 if number > 7 else number,
            number % 2 if number > 7 else None,
            params={"long": "é" * 7000, "none": None, "list": [1, 2], "number": number},
            tags={"mlflow.user": f"user {number % 2}", "long": "x" * 9000, "state": "RUNNING", "text": "\n'%s?"}
            if number
            else {},
            **({} if number == 7 else {"dataset": dataset}),
        )
        for artifact in ("overrides.yaml", "plots/slice.png"):
            (run.path / artifact).parent.mkdir(parents=True, exist_ok=True)
            (run.path / artifact).write_text(f"{artifact} {number}")
        (run.path / "overrides.yaml").chmod(0o640)
        with Journal(run.journal) as made:
            made.metrics(range(1, 1501), {"step/loss": [i / (number + 1) for i in range(1500)]})
            for epoch in range(1, 6):
                loss = math.inf if (number, epoch) == (3, 5) else math.sin(number + epoch)
                made.metrics([epoch], {"val/loss": [loss], "lr": [1]}, time=1_800_000_000_000)
            made.event("metrics", steps=[2, 2, 2, 1], values={"odd": [1.5, 1.5, 2.5, 9.5]})
            made.event("metrics", time=7, steps=[2], values={"odd": [99.5]})
        study.end(
            run,
            {1: "FAILED", 2: "KILLED"}.get(number, "FINISHED"),
            tags={"state": "PRUNED"},
            values={"best/epoch": [3], "lr": [0.25]},
            artifacts=["config.yaml", "overrides.yaml", "error.txt", *ARTIFACTS_OF.get(number, [])],
        )
    study.end(study.folder.run)
    return study


def send_singly(study: Study, store: Store) -> None:
    uploader = Uploader(store)
    for run in (*study.folder.runs(), study.folder.run):
        assert uploader.push(run)


def send_at_once(study: Study, store: Store) -> None:
    uploader, runs = Uploader(store), study.folder.runs()
    assert uploader.push_complete(runs) == set(runs)
    assert uploader.push(study.folder.run)


def both_ways(tmp_path: Path, outputs: Path, at_once: Store) -> tuple[Contents, Contents]:
    """What stores have of the same study, sent singly and at once."""
    study = various(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.copy(outputs / "mlflow.db", tmp_path / "one")
    send_singly(study, embedded(tmp_path / "one"))
    study.folder = StudyFolder(tmp_path / "two" / study.folder.path.relative_to(tmp_path / "one"))
    send_at_once(study, at_once)
    return contents(embedded(tmp_path / "one"), "various"), contents(at_once, "various")


def test_every_row_and_artifact_is_what_the_client_makes(tmp_path: Path, outputs: Path) -> None:
    shutil.copy(outputs / "mlflow.db", tmp_path / "two.db")
    at_once = Store(f"sqlite:///{tmp_path}/two.db", tmp_path / "two" / "mlartifacts")
    singly, together = both_ways(tmp_path, outputs, at_once)
    assert singly["n"] == [11]
    assert len(singly["metrics"]) > 15_000
    assert len(singly["artifacts"]) == 2 * 10 + 2
    for table, expected in singly.items():
        assert together[table] == expected, table


@pytest.mark.process
def test_every_row_in_postgresql_is_what_the_client_makes(tmp_path: Path, outputs: Path, postgresql: str) -> None:
    singly, together = both_ways(tmp_path, outputs, Store(postgresql, tmp_path / "two" / "mlartifacts"))
    for table, expected in singly.items():
        assert together[table] == expected, table


def test_what_is_known_of_the_runs_is_lost_and_nothing_is_sent_twice(
    study: Study, outputs: Path, database: Path
) -> None:
    runs = [study.whole_trial(number) for number in range(5)]
    study.end(study.folder.run)
    uploader = Uploader(embedded(outputs))
    assert uploader.push_complete(runs) == set(runs)  # the first by the client
    assert uploader.push(study.folder.run)
    assert_uploaded(study, database)
    before = rows(database)
    for run in runs[:4]:
        run.sync_state.unlink()
    (runs[3].sync_state).write_text("")  # as a power cut may leave it
    uploader = Uploader(embedded(outputs))
    assert uploader.push_complete([runs[3]]) == {runs[3]}  # to be compared
    for found in (runs[0], runs[1]):  # one that was made by the client, and one that was not
        assert uploader.push_complete([found, runs[4]]) == {runs[4]}
    assert rows(database) == before
    assert all(uploader.push(run) for run in runs)
    assert rows(database) == before


def test_what_is_partly_sent_or_runs_or_is_sent_by_another_is_left(study: Study, outputs: Path, database: Path) -> None:
    uploader = Uploader(embedded(outputs))
    whole = [study.whole_trial(number) for number in range(3)]
    begun, running, resumed, torn = (study.trial(number) for number in range(3, 7))
    uploader.push(begun)
    for run in (begun, running, torn):
        study.epochs(run)
    study.end(begun)
    study.end(resumed, "KILLED", steps=[], values={})  # as a trial that is stopped ends
    study.trial(5)
    study.end(resumed)
    study.end(torn)
    with open(torn.journal, "a") as file:
        file.write('{"kind": "st')
    study.end(study.folder.run)
    with whole[1].upload_lock():
        assert uploader.push_complete([*whole, begun, running, resumed, torn]) == {whole[0], whole[2]}
    assert uploader.push_complete([*whole, begun]) == set(whole)
    study.end(running)
    study.end(torn, tags={"state": "FAIL"})  # which cuts off the torn line
    for run in (begun, running, resumed, torn, study.folder.run):
        assert uploader.push(run)
    assert_uploaded(study, database)


def test_a_trial_that_mlflow_would_refuse_is_left_and_does_not_stop_others(study: Study, outputs: Path) -> None:
    runs = [study.whole_trial(number) for number in range(3)]
    refused = [
        study.trial(3, params={"no!": 1}),
        study.trial(4, tags={"k" * 251: "1"}),
        study.trial(5, dataset={"name": "n" * 501, "digest": "0", "source": {}, "profile": {}}),
        study.trial(6),
        study.trial(7),
        study.trial(8, name=""),
        study.trial(9, tags={"mlflow.runName": "another"}),
    ]
    for number, run in enumerate(refused, 3):
        odd = {6: {"a/../b": [1.0]}, 7: {"flag": [True]}}.get(number, {"fine": [1.0]})
        study.end(run, values=odd)
    assert Uploader(embedded(outputs)).push_complete([*refused, *runs]) == set(runs)


def test_a_store_whose_tables_are_not_as_they_are_known_is_left_to_the_client(
    tmp_path: Path, outputs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One column more, with a value of its own; one that is empty; a row in a table that no run had rows in."""
    changes = (
        "ALTER TABLE runs ADD COLUMN flavour TEXT DEFAULT 'plain'",
        "ALTER TABLE metrics ADD COLUMN unit TEXT",
        "ALTER TABLE datasets ADD COLUMN owner TEXT",
        "CREATE TRIGGER shouts AFTER INSERT ON tags WHEN new.key = 'sweep.uid' "
        "BEGIN INSERT INTO params (run_uuid, key, value) VALUES (new.run_uuid, 'extra', 'x'); END",
        "CREATE TRIGGER notes AFTER INSERT ON inputs BEGIN INSERT INTO entity_associations "
        "(association_id, source_type, source_id, destination_type, destination_id) "
        "VALUES ('a', 'run', 'b', 'run', new.destination_id); END",
    )
    for i, change in enumerate(changes):
        folder = tmp_path / str(i)
        folder.mkdir()
        shutil.copy(outputs / "mlflow.db", folder)
        with sqlite3.connect(folder / "mlflow.db") as database:
            database.execute(change)
        study = Study(folder, "of another schema")
        runs = [study.whole_trial(number) for number in range(4)]
        study.end(study.folder.run)
        uploader = Uploader(embedded(folder))
        assert uploader.push_complete(runs) == {runs[0]}, change
        assert "runs are sent one by one" in caplog.text
        caplog.clear()
        assert uploader.push_complete(runs) == {runs[0]}, change
        assert StudyUpload(study.folder, lambda m=uploader: m).finish(lambda n_left: None) is None
        assert_uploaded(study, folder / "mlflow.db")


def test_a_trial_without_artifacts_of_outputs_that_were_moved_is_as_it_is_known(
    tmp_path: Path, outputs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The trial was stopped and sent before they were moved."""
    made, moved = tmp_path / "made", tmp_path / "moved"
    made.mkdir()
    shutil.copy(outputs / "mlflow.db", made)
    study = Study(made, "s")
    study.end(study.trial(0), "KILLED", steps=[], values={}, tags={})
    assert Uploader(embedded(made)).push(study.folder.trial(0))
    made.rename(moved)
    runs = StudyFolder(moved / "studies" / "s").runs()
    assert Uploader(embedded(moved)).push_complete(runs) == set(runs)
    assert caplog.text == ""  # else they would be sent singly from now on


@pytest.mark.parametrize(
    ("uri", "may_be"),
    [
        ("sqlite:////a/mlflow.db", True),
        ("postgresql+psycopg://host/db", True),
        ("http://host", False),
        ("mysql://host/db", False),
        ("databricks", False),
    ],
)
def test_only_databases_of_known_kinds_are_written_to(uri: str, may_be: bool) -> None:
    assert Tables.may_be_at(uri) is may_be


def test_the_helper_sends_whole_trials_at_once(
    study: Study, outputs: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploader, pushed = Uploader(embedded(outputs)), []
    push = uploader.push
    monkeypatch.setattr(uploader, "push", lambda run: (pushed.append(run.path.name), push(run))[1])
    of_study = StudyUpload(study.folder, lambda: uploader)
    for number in range(4):
        study.whole_trial(number)
    running = study.trial(4)
    of_study.push_news(lambda: False)
    assert pushed == [study.folder.path.name]
    study.epochs(running)
    study.end(running)
    dead = study.trial(5)
    study.epochs(dead)
    of_study.push_news(lambda: False)
    of_study.push_news(lambda: False)
    assert pushed == [study.folder.path.name]
    study.end(study.folder.run)
    assert of_study.finish(lambda n_left: None) is None
    assert pushed == [study.folder.path.name, "5", study.folder.path.name]
    study.end(dead, "KILLED", steps=[], values={})  # as the store has it
    assert_uploaded(study, database)


def test_a_failure_to_write_leaves_all_to_the_client(
    study: Study, outputs: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Tables, runs: object) -> None:
        raise OperationalError("INSERT", {}, Exception("the disk is full"))

    for number in range(4):
        study.whole_trial(number)
    study.end(study.folder.run)
    uploader = Uploader(embedded(outputs))
    with monkeypatch.context() as patch:
        patch.setattr(Tables, "write", fail)
        assert StudyUpload(study.folder, lambda: uploader).finish(lambda n_left: None) is None
    assert_uploaded(study, database)


_SEND_AT_ONCE = """
import logging
import sys
from pathlib import Path
from sweep.tracking.mlflow_bulk import Tables
from sweep.tracking.folders import StudyFolder
from sweep.tracking.mlflow_client import Uploader
from sweep.tracking.store import Store
from sweep.tracking.study_upload import StudyUpload

outputs, folder = Path(sys.argv[1]), StudyFolder(sys.argv[2])
uploader = Uploader(Store(f"sqlite:///{outputs}/mlflow.db", outputs / "mlartifacts"))
print("ready", flush=True)
sys.stdin.readline()
failures = []
handler = logging.Handler()
handler.emit = lambda record: failures.append(logging.Formatter().format(record))
logging.getLogger("sweep").addHandler(handler)
problem = StudyUpload(folder, lambda: uploader).finish(lambda n_left: None)
assert problem is None, problem
assert not failures, failures
"""


@pytest.mark.process
def test_processes_may_send_at_once_to_one_store(study: Study, outputs: Path, database: Path) -> None:
    """Two of them the same study."""
    another = Study(outputs, f"beside {study.folder.path.name}")
    for of in (study, another):
        for number in range(60):
            of.whole_trial(number)
        of.end(of.folder.run)
    folders = [study.folder.path, study.folder.path, another.folder.path]
    go_at_once(_SEND_AT_ONCE, [(str(outputs), str(folder)) for folder in folders])
    assert_uploaded(study, database)
    assert_uploaded(another, database)


AFTER = ("the same", "the client", "one that saw no trials")
_PUSH = """
    runs = folder.runs()
    uploader._agreed = True  # the client's own steps are killed elsewhere
    uploader._tables._agreed = uploader._tables.schema()
    assert uploader.push_complete(runs) == set(runs)
    assert uploader.push(folder.run)
"""


@pytest.mark.process
@pytest.mark.parametrize("after", AFTER)
def test_an_upload_killed_between_any_two_steps_makes_no_second_run(after: str, outputs: Path, database: Path) -> None:
    """Each of the three that come after it meets every third step."""
    studies = [Study(outputs, f"killed at {n}, {after}") for n in range(1, 15)]
    witness = Uploader(embedded(outputs))
    for study in studies:
        if after == "one that saw no trials":
            first = study.folder.trial(0)
            witness._runs.parent(first, {"parent": study.as_parent(first), "experiment": study.folder.path.name})
        for number in range(2):
            study.end(study.trial(number), artifacts=["config.yaml"])
        study.end(study.folder.run)
    # Before each rename of mlflow.json, and each copy of an artifact.
    steps = ("os.rename", "shutil.copyfile")
    outcomes = outcomes_of_killed(outputs, studies, _PUSH, steps, first=AFTER.index(after) + 1, every=len(AFTER))
    assert 5 < len(outcomes) < 15
    for study, _ in zip(studies, outcomes, strict=False):
        uploader = witness if after == "one that saw no trials" else Uploader(embedded(outputs))
        if after == "the same":
            assert StudyUpload(study.folder, lambda m=uploader: m).finish(lambda n_left: None) is None
        for run in (*study.folder.runs(), study.folder.run):
            assert uploader.push(run)
        assert_uploaded(study, database)
