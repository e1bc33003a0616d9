"""sweep/tracking/upload_process.py on studies: real helper processes mirror what other processes write."""

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from stores import Server, Study, assert_uploaded, embedded, points, run_of, runs_of
from waiting import wait_until

from sweep import sync
from sweep.tracking.folders import RunFolder
from sweep.tracking.store import Store
from sweep.tracking.upload_process import UploadProcess

pytestmark = pytest.mark.process  # commands, servers, a browser


@pytest.fixture
def store(outputs: Path) -> Store:
    return embedded(outputs)


@pytest.fixture
def another(tmp_path: Path) -> Iterator[UploadProcess]:
    """A helper process of its own, as a second controller has it."""
    upload_process = UploadProcess(tmp_path)
    yield upload_process
    upload_process.close()
    wait_until(lambda: upload_process._process.poll() is not None, what="the helper to end")


def statuses(run: RunFolder, store: Store) -> list[str]:
    assert store.uri is not None
    return [found.info.status for found in runs_of(run.path, store.uri)]


def test_trials_are_mirrored_as_they_begin_go_on_and_end(
    study: Study, upload_process: UploadProcess, store: Store, database: Path
) -> None:
    upload_process.add_study(study.folder, store)
    wait_until(lambda: statuses(study.folder.run, store) == ["RUNNING"], what="the study to appear")
    quick, slow = study.whole_trial(0), study.trial(1, 0)
    with slow.lock():
        study.epochs(slow, last=2)
        wait_until(lambda: statuses(quick, store) == ["FINISHED"], what="the trial that has ended")
        wait_until(lambda: statuses(slow, store) == ["RUNNING"], what="the trial that goes on")
        study.epochs(slow, first=3, last=4)
        study.end(slow, "FAILED")
        wait_until(lambda: statuses(slow, store) == ["FAILED"], what="its end")
    study.whole_trial(1, 1)
    study.end(study.folder.run)
    assert upload_process.finish_study(study.folder, 60) is None
    assert_uploaded(study, database)


def test_a_study_is_finished_after_its_trials(
    study: Study, upload_process: UploadProcess, store: Store, database: Path
) -> None:
    for number in range(3):
        study.whole_trial(number)
    study.trial(3)  # its worker died
    study.end(study.folder.run, values={"trials/complete": [3]})
    upload_process.add_study(study.folder, store)
    left: list[int] = []
    assert upload_process.finish_study(study.folder, 60, left.append) is None
    assert left[0] == 4
    with closing(sqlite3.connect(database)) as connection:
        in_order = connection.execute("SELECT run_uuid FROM metrics ORDER BY rowid").fetchall()
    assert in_order[-1] == (run_of(study.folder.path, f"sqlite:///{database}").info.run_id,)
    assert statuses(study.folder.trial(3), store) == ["KILLED"]


def test_two_controllers_of_a_study_send_it_once(
    study: Study, upload_process: UploadProcess, another: UploadProcess, store: Store, database: Path
) -> None:
    for helper in (upload_process, another):
        helper.add_study(study.folder, store)
    for number in range(12):
        study.whole_trial(number)
        if number == 6:
            wait_until(lambda: statuses(study.folder.trial(6), store), what="both to be at work")
    study.end(study.folder.run)
    problems: list[str | None] = []
    threads = [
        threading.Thread(target=lambda h=helper: problems.append(h.finish_study(study.folder, 60)))
        for helper in (upload_process, another)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == [None, None]
    assert_uploaded(study, database)


def test_a_trial_that_cannot_be_sent_does_not_stop_the_others(
    study: Study, upload_process: UploadProcess, store: Store, database: Path
) -> None:
    for number in range(5):
        study.whole_trial(number)
    obstacle = study.folder.trial(1).sync_state
    obstacle.mkdir()
    damaged = study.folder.trial(2).journal
    whole = damaged.read_bytes()
    damaged.write_bytes(b'["no record"]\n' + whole)
    study.end(study.folder.run)
    upload_process.add_study(study.folder, store)
    wait_until(lambda: statuses(study.folder.trial(4), store) == ["FINISHED"], what="the last trial")
    problem = upload_process.finish_study(study.folder, 60)
    assert problem is not None
    assert problem.startswith("2 of its runs: ")
    assert statuses(study.folder.run, store) == ["FINISHED"]
    obstacle.rmdir()
    damaged.write_bytes(whole)
    assert sync.main([str(study.folder.path)]) == 0
    assert_uploaded(study, database)


def test_a_store_that_is_down_at_first_has_all_in_the_end(tmp_path: Path, another: UploadProcess) -> None:
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    study = Study(tmp_path, "down at first", store=server.uri)
    another.add_study(study.folder, Store(server.uri, None))
    study.whole_trial(0)
    wait_until(lambda: "cannot upload" in (tmp_path / "mirror.log").read_text(), what="the store to be found down")
    server.start()
    try:
        study.whole_trial(1)
        study.end(study.folder.run)
        assert another.finish_study(study.folder, 60) is None
        assert_uploaded(study, server.database)
    finally:
        server.stop()


def test_a_study_whose_store_stays_down_says_so(tmp_path: Path, upload_process: UploadProcess) -> None:
    study = Study(tmp_path, "down")
    for number in range(3):
        study.whole_trial(number)
    upload_process.add_study(study.folder, Store(Server(tmp_path).uri, None))
    problem = upload_process.finish_study(study.folder, 60)
    assert problem is not None
    assert problem.startswith("API request to http://127.0.0.1")


_CONTROLLER = """
import os, signal, sys
from pathlib import Path
from sweep.tracking.folders import StudyFolder
from sweep.tracking.upload_process import UploadProcess
from sweep.tracking.store import Store

outputs, folder = map(Path, sys.argv[1:])
UploadProcess(outputs).add_study(
    StudyFolder(folder), Store(f"sqlite:///{outputs}/mlflow.db", outputs / "mlartifacts")
)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_controller_that_is_killed_leaves_a_helper_that_sends_what_is_there(
    study: Study, outputs: Path, store: Store
) -> None:
    study.whole_trial(0)
    dead, alive = study.trial(1), study.trial(2)
    study.epochs(alive)
    with alive.lock():  # of a worker that outlives the controller
        subprocess.run([sys.executable, "-c", _CONTROLLER, str(outputs), str(study.folder.path)], check=False)
        wait_until(lambda: statuses(study.folder.run, store) == ["KILLED"], what="the helper to be done")
        found = [statuses(run, store) for run in (study.folder.trial(0), dead, alive)]
    assert found == [["FINISHED"], ["KILLED"], ["RUNNING"]]
    assert len(points(run_of(alive.path, store.uri or ""), outputs / "mlflow.db")["lr"]) == 3


def test_helpers_that_no_run_began_with_leave_no_log_and_none_takes_the_log_of_another(tmp_path: Path) -> None:
    log, run = tmp_path / "mirror.log", RunFolder(tmp_path / "runs" / "x")
    first, second = UploadProcess(tmp_path), UploadProcess(tmp_path)
    first.add_run(run, embedded(tmp_path))
    first.close()
    assert log.exists()
    second.close()
    log.unlink()
    alone = UploadProcess(tmp_path)
    alone.add_run(run, embedded(tmp_path))
    alone.close()
    assert list(tmp_path.iterdir()) == []


def test_an_untracked_study_is_neither_mirrored_nor_drawn(tmp_path: Path, upload_process: UploadProcess) -> None:
    study = Study(tmp_path, "untracked")
    run = study.trial(0)
    study.epochs(run)
    study.end(run, artifacts=["curves.png"])
    upload_process.add_study(study.folder, Store(None, None))
    assert upload_process.finish_study(study.folder, 60) is None
    assert not run.curves.exists()
    assert [path for path in tmp_path.rglob("*") if path.name in ("mlflow.db", "mlflow.json")] == []
