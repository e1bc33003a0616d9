"""Studies in MLflow (tracking/mlflow_client.py, sync.py): one parent, a child for each trial, in any order and case."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from processes import go_at_once
from stores import Study, assert_uploaded, embedded, outcomes_of_killed, points, recorded, rows, run_of

from sweep import sync
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.tracking.journal import Journal
from sweep.tracking.mlflow_client import Uploader
from sweep.tracking.run_recorder import add_artifacts
from sweep.tracking.study_upload import StudyUpload

pytestmark = pytest.mark.slow  # MLflow, or many compositions


@pytest.fixture(scope="module")
def uploader(outputs: Path) -> Uploader:
    return Uploader(embedded(outputs))


@pytest.fixture
def study(outputs: Path, request: pytest.FixtureRequest) -> Study:
    return Study(outputs, request.node.name, params={"sampler": "tpe"})


@pytest.mark.parametrize("order", ["p012", "012p", "0p12", "21p0p"])
def test_trials_stand_below_their_study_whatever_is_sent_first(
    order: str, study: Study, uploader: Uploader, database: Path
) -> None:
    trials = [study.whole_trial(0), study.whole_trial(1, 0), study.whole_trial(1, 1)]
    study.epochs(study.folder.run)
    study.end(study.folder.run, tags={"best.trial": "0"})
    for sent in order:
        assert uploader.push(study.folder.run if sent == "p" else trials[int(sent)])
    run = assert_uploaded(study, database)
    assert run.data.params == {"sampler": "tpe"}
    assert run.data.tags["best.trial"] == "0"
    assert run.inputs is None or run.inputs.dataset_inputs == []
    before = rows(database)
    for folder in (*trials, study.folder.run):
        assert uploader.has_all(folder)
        folder.sync_state.unlink()
        assert Uploader(embedded(database.parent)).push(folder)
    assert rows(database) == before


def test_a_trial_that_was_moved_finds_its_study(
    study: Study, outputs: Path, uploader: Uploader, database: Path, tmp_path: Path
) -> None:
    shutil.copytree(study.whole_trial(0).path, tmp_path, dirs_exist_ok=True)
    assert uploader.push(RunFolder(tmp_path))
    study.end(study.folder.run)
    assert Uploader(embedded(outputs)).push(study.folder.run)
    moved = run_of(tmp_path, f"sqlite:///{database}")
    parent = run_of(study.folder.path, f"sqlite:///{database}")
    assert moved.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.run_name, parent.info.status, parent.data.params) == (
        "the study",
        "FINISHED",
        {"sampler": "tpe"},
    )


def test_a_folder_that_another_study_took_over_is_not_the_parent(
    study: Study, uploader: Uploader, database: Path, outputs: Path
) -> None:
    orphan = study.whole_trial(0)
    study.folder.run.journal.unlink()
    successor = Study(outputs, study.folder.path.name)
    assert uploader.push(orphan)
    assert uploader.push(successor.folder.run)
    parent = run_of(successor.folder.path, f"sqlite:///{database}")
    assert run_of(orphan.path, f"sqlite:///{database}").data.tags["mlflow.parentRunId"] != parent.info.run_id


def test_a_study_that_goes_on_is_running_again_and_keeps_its_params(
    study: Study, uploader: Uploader, database: Path
) -> None:
    study.end(study.folder.run)
    uploader.push(study.folder.run)
    assert_uploaded(study, database)
    study.begin(params={"sampler": "random"}, tags={"kind": "study", "host": "another"})
    study.whole_trial(0)
    uploader.push(study.folder.trial(0))
    uploader.push(study.folder.run)
    run = assert_uploaded(study, database, "RUNNING")
    assert (run.data.params["sampler"], run.data.tags["host"]) == ("tpe", "another")
    study.end(study.folder.run)
    uploader.push(study.folder.run)
    assert_uploaded(study, database)


def test_a_trial_retried_before_it_was_ever_sent_is_sent_as_it_is_now(
    study: Study, uploader: Uploader, database: Path
) -> None:
    run = study.trial(0)
    study.epochs(run, last=2)
    study.end(run, "KILLED", steps=[], values={})
    study.trial(0)
    study.epochs(run, first=3, last=4)
    uploader.push(run)
    in_store = run_of(run.path, f"sqlite:///{database}")
    assert (in_store.info.status, points(in_store, database)) == ("RUNNING", recorded(run.path))


def test_the_artifacts_are_those_that_the_end_names(
    study: Study, uploader: Uploader, database: Path, tmp_path: Path
) -> None:
    run, client = study.folder.run, MlflowClient(f"sqlite:///{database}")
    for name in ("best.pt", "plots/history.png", "plots/deep/slice.png", "experiment/best.yaml"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text(name)
    study.end(run, artifacts=["config.yaml", "plots", "experiment", "missing.yaml", "../trials"])
    uploader.push(run)
    stored = Path(client.download_artifacts(run_of(run.path, f"sqlite:///{database}").info.run_id, "", str(tmp_path)))
    names = {str(path.relative_to(stored)) for path in stored.rglob("*") if path.is_file()}
    assert names == {"config.yaml", "plots/history.png", "experiment/best.yaml"}  # only what a study writes itself
    assert not run.curves.exists()

    drawn, older = study.trial(0), study.trial(1)
    study.epochs(drawn)
    study.epochs(older)
    study.end(drawn, artifacts=["curves.png"])
    with Journal(older.journal) as made:
        made.event("end", status="FINISHED", steps=[], values={}, tags={})  # as records were before they named any
    for trial, expected in ((drawn, {"curves.png"}), (older, {"config.yaml", "curves.png"})):
        uploader.push(trial)
        run_id = run_of(trial.path, f"sqlite:///{database}").info.run_id
        assert {file.path for file in client.list_artifacts(run_id)} == expected


def test_what_is_added_to_a_settled_trial_arrives_at_the_end(study: Study, uploader: Uploader, database: Path) -> None:
    trial, other = study.whole_trial(0), study.whole_trial(1)
    upload = StudyUpload(study.folder, lambda: uploader)
    upload.push_news(lambda: False)
    upload.push_news(lambda: False)
    assert uploader.has_all(trial)
    trial.predictions.write_bytes(b"table")
    add_artifacts(trial, [trial.predictions.name])
    study.end(study.folder.run)
    assert upload.finish(lambda n_left: None) is None
    uri = f"sqlite:///{database}"
    for run, names in ((trial, [trial.predictions.name]), (other, [])):
        artifacts = MlflowClient(uri).list_artifacts(run_of(run.path, uri).info.run_id)
        assert [file.path for file in artifacts] == names
    assert_uploaded(study, database)


def test_a_picture_from_before_a_resume_is_drawn_again(study: Study, uploader: Uploader) -> None:
    run = study.trial(0)
    study.epochs(run, last=2)
    study.end(run, "KILLED", artifacts=["curves.png"])
    uploader.push(run)
    early = run.curves.read_bytes()
    study.epochs(run, first=3, last=9)
    study.end(run, artifacts=["curves.png"])
    uploader.push(run)
    assert run.curves.read_bytes() != early


@pytest.mark.usefixtures("uploader")  # which has made the store
def test_sync_sends_a_study_with_its_trials_and_again_nothing(
    tmp_path: Path, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(outputs / "mlflow.db", tmp_path)  # its tables are slow to make
    study = Study(tmp_path, "synced")
    for number in range(3):
        study.whole_trial(number)
    study.epochs(study.trial(3))  # its worker died
    study.end(study.folder.run)
    assert sync.main([str(study.folder.trials)]) == 0
    assert sync.main([str(tmp_path)]) == 0
    assert "5 of 5 tracked runs" in capsys.readouterr().out
    dead = run_of(study.folder.trial(3).path, f"sqlite:///{tmp_path}/mlflow.db")
    assert dead.info.status == "KILLED"
    last = journal.last(study.folder.trial(3).journal)
    assert last is not None
    assert dead.info.end_time == last["time"], "as of what it recorded last, however often it is sent"
    study.end(study.folder.trial(3), "KILLED")
    assert sync.main([str(tmp_path)]) == 0
    assert_uploaded(study, tmp_path / "mlflow.db")
    before = rows(tmp_path / "mlflow.db")
    assert sync.main([str(tmp_path)]) == 0
    assert rows(tmp_path / "mlflow.db") == before


def test_sync_gives_up_a_store_that_is_down_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(tmp_path, "down", store="http://127.0.0.1:9")
    study.whole_trial(0)
    assert sync.main([str(tmp_path), "--uri", "http://127.0.0.1:9"]) == 1
    printed = capsys.readouterr()
    assert "0 of 2 tracked runs" in printed.out
    assert len(printed.err.splitlines()) == 2
    assert "http://127.0.0.1:9 does not answer; its other runs wait" in printed.err


_PUSH_AT_ONCE = """
import sys
from pathlib import Path
from sweep.tracking.folders import Busy, StudyFolder
from sweep.tracking.mlflow_client import Uploader
from sweep.tracking.store import Store

outputs, folder = Path(sys.argv[1]), StudyFolder(sys.argv[2])
uploader = Uploader(Store(f"sqlite:///{outputs}/mlflow.db", outputs / "mlartifacts"))
left = [*folder.runs(), folder.run]
print("ready", flush=True)
sys.stdin.readline()
while left:
    run = left.pop(0)
    try:
        assert uploader.push(run)
    except Busy:
        left.append(run)
"""


@pytest.mark.process
def test_two_processes_may_upload_a_study_at_once(
    study: Study, uploader: Uploader, outputs: Path, database: Path
) -> None:
    for number in range(8):
        study.whole_trial(number)
    study.end(study.folder.run)
    go_at_once(_PUSH_AT_ONCE, [(str(outputs), str(study.folder.path))] * 2)
    assert_uploaded(study, database)


_PUSH = """
    for run in (*folder.runs(), folder.run):
        assert uploader.push(run)
"""


@pytest.mark.process
@pytest.mark.parametrize("beside_another", [False, True])
def test_an_upload_killed_between_any_two_steps_makes_no_second_run(
    beside_another: bool, outputs: Path, uploader: Uploader, database: Path
) -> None:
    """Either way, every second step is tried."""
    studies = [Study(outputs, f"killed at {n} {beside_another}") for n in range(1, 20)]
    if beside_another:  # one that has seen the study when it had no trials
        for study in studies:
            assert uploader.push(study.whole_trial(0))
    for study in studies:
        study.whole_trial(1)
        study.end(study.folder.run)
    steps = ("os.rename",)  # before each of mlflow.json
    outcomes = outcomes_of_killed(outputs, studies, _PUSH, steps, first=1 + beside_another, every=2)
    assert 5 < len(outcomes) < 20
    for study, _ in zip(studies, outcomes, strict=False):
        after_it = uploader if beside_another else Uploader(embedded(outputs))
        for run in (*study.folder.runs(), study.folder.run):
            assert after_it.push(run)
        assert_uploaded(study, database)


_KILLED_IN_MAKING = """
import os, signal, sys
from pathlib import Path
import sqlalchemy
from sweep.tracking.mlflow_client import Uploader
from sweep.tracking.store import Store

outputs, left = Path(sys.argv[1]), int(sys.argv[2])

def step(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

sqlalchemy.event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", step)
Uploader(Store(f"sqlite:///{outputs}/mlflow.db", outputs / "mlartifacts"))
"""


@pytest.mark.process
@pytest.mark.parametrize("n_statements", [1, 30, 200])
def test_a_process_killed_while_it_makes_the_store_leaves_none_that_is_half_made(
    n_statements: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", _KILLED_IN_MAKING, str(tmp_path), str(n_statements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "mlflow.db").exists()
    Uploader(embedded(tmp_path)).reach()
