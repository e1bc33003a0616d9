"""`python -m sweep.studies` on studies that were run, and on one that runs in another process."""

import io
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from processes import client, make_store, mlflow_runs, quick, quick_start
from stores import Study, embedded, rows
from study_folders import folder_of
from waiting import wait_until

from sweep import ConfigError, load_study, studies
from sweep.manage import list_studies, move_outputs, plan_removal
from sweep.storage.storage import open_storage
from sweep.study.status import LiveWorker, RunningTrial, StudyStatus, status_group
from sweep.tracking import journal
from sweep.tracking.folders import StudyFolder
from sweep.tracking.mlflow_client import Uploader
from sweep.training import checkpoint
from sweep.utils.console import Console

pytestmark = pytest.mark.process  # commands, servers

SMALL = ("experiment=debug", "hydra/sweeper/pruner=none", "hydra/sweeper/sampler=random", "hydra.sweeper.study_name=s")
LONG = (*SMALL, "tracking=off", "data.n=96", "trainer.epochs=100000", "hydra.sweeper.n_trials=2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of three trials, recorded in MLflow. Tests only read it."""
    cwd = make_store(tmp_path_factory.mktemp("finished"))
    done = quick(cwd, "-m", *SMALL, "optimizer=sgd,adam", "hydra.sweeper.n_trials=3")
    assert done.returncode == 0, done.stderr
    return cwd


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs the command in this process; what it prints as JSON."""

    def tell(*words: object, status: int = 0) -> Any:
        capsys.readouterr()
        assert studies.main([str(word) for word in (*words, "--json")]) == status
        out, err = capsys.readouterr()
        assert err == ""
        return json.loads(out)

    return tell


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The only line on standard error."""
    capsys.readouterr()
    assert studies.main([str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_studies_are_listed_and_shown(
    finished: Path, answer: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = finished / "outputs"
    (listed,) = answer("list", "--output-dir", outputs)
    shown = answer("show", "s", "--output-dir", outputs)
    assert shown == listed == answer("show", folder_of(finished).path)
    assert (shown["name"], shown["state"], shown["n_trials"]) == ("s", "complete", 3)
    assert shown["n_by_state"] == {
        **dict.fromkeys(("pruned", "failed", "running", "waiting", "stopped"), 0),
        "complete": 3,
    }
    (best,) = shown["best"]
    values = [min(journal.curves(folder_of(finished).trial(n).journal)["val/loss"].values) for n in range(3)]
    assert best["values"] == [min(values)]
    assert best["number"] == values.index(min(values))
    assert set(best["params"]) >= {"optimizer", "trainer.batch_size"}

    assert studies.main(["show", "s", "--output-dir", str(outputs)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "study s, complete: 3 of 3 trials: 3 complete"
    assert second.startswith(f"best val/loss {min(values):.6g}  trial {best['number']}  optimizer=")
    assert studies.main(["list", "--output-dir", str(outputs)]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "state", "done", "best", "began"]
    assert line.split()[:6] == ["s", "complete", "3", "of", "3", f"{min(values):.6g}"]


def test_a_terminal_of_80_columns_has_room_for_workers_of_a_cluster() -> None:
    params = {"optimizer": "adam", "scheduler.max_lr": 0.03213, "trainer.batch_size": 128, "model.width": 64}
    status = StudyStatus(
        name="s",
        folder=Path("s"),
        state="running",
        n_trials=99,
        n_by_state={"complete": 3, "pruned": 1, "failed": 0, "running": 65},
        objectives=["val/loss"],
        running=[RunningTrial(4, 3, 0.123456, params, "node-17.cluster.example/0a1b2c3d-0")],
        workers=[
            LiveWorker("node-17.internal.eu-west-1.compute.example.com", "0a1b2c3d-11.1", [4], 3.2),
            LiveWorker("node-18", "0a1b2c3d-12", list(range(5, 69)), 73.0),
            LiveWorker("node-19", "0a1b2c3d-13", [], None),
        ],
    )
    out = io.StringIO()
    Console(file=out, width=80, soft_wrap=True).print(status_group(status))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = (line for line in lines if "0a1b2c3d-12" in line)
    assert "5, 6, 7, 8 and 60 more" in row
    assert "73 s ago" in row


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
def test_trials_are_exported_as_they_are(
    suffix: str, finished: Path, tmp_path: Path, answer: Callable[..., Any]
) -> None:
    place = tmp_path / f"trials{suffix}"
    assert answer("export", folder_of(finished).path, "--to", place) == {"file": str(place)}
    read = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".json": pd.read_json}[suffix](place)
    plain = answer("export", folder_of(finished).path)
    assert read.number.tolist() == [0, 1, 2] == [row["number"] for row in plain]
    values = [trial.value for trial in load_study(folder_of(finished).path).results]
    assert [row["value"] for row in plain] == values, "with all digits"
    assert read.value.tolist() == pytest.approx(values, rel=1e-14)
    assert set(read.state) == {"complete"}
    assert set(read["params.optimizer"]) <= {"sgd", "adam"}
    assert read.folder.tolist() == [str(folder_of(finished).trial(n).path) for n in range(3)]
    assert (read.duration_s > 0).all()
    runs = {run.info.run_id: run.info.run_name for run in mlflow_runs(finished)}
    assert [str(runs[run_id])[:3] for run_id in read.mlflow_run_id] == ["t0-", "t1-", "t2-"]
    with pytest.raises(ConfigError, match=r"^--to: '.*' exists; remove it"):
        load_study(folder_of(finished).path).export(place)


BAD = {
    "no study": (["show", "t"], "error: study: 't' is not below '{outputs}/studies'; choose one of: s"),
    "no trial": (["retry", "s", "--trial", "7"], "error: trial: 's' has no trial 7, only 0 to 2"),
    "not failed": (["retry", "s", "--trial", "1"], "error: trial: 1 is complete; only a trial that failed or was"),
    "not running": (["stop", "s"], "error: study: no worker of 's' is running"),
    "none that trains": (["stop", "s", "--trial", "1"], "error: trial: 1 is complete; only a trial that is being"),
    "no kind of file": (["export", "s", "--to", "trials.xls"], "error: --to: '"),
    "no storage": (["show", "s", "--storage", "{outputs}/no.log"], "error: storage: there is no file"),
    "no command": (["stap", "s"], "error: command line: "),
    "no number": (["stop", "s", "--trial", "x"], "error: command line: "),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_one_line(case: str, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, line = BAD[case]
    outputs = finished / "outputs"
    where = [] if words[0] == "stap" else ["--output-dir", outputs]
    assert refused(capsys, *(word.format(outputs=outputs) for word in words), *where).startswith(
        line.format(outputs=outputs)
    )


def test_a_study_without_failures_has_none_to_retry(finished: Path, answer: Callable[..., Any]) -> None:
    assert answer("retry", folder_of(finished).path) == {"queued": []}


def test_a_study_of_another_process_is_watched_and_stopped(
    tmp_path: Path, answer: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """First one trial, whose worker goes on with the other; then the study. The same command resumes both."""
    place = folder_of(tmp_path).path

    def status() -> Any:
        return answer("show", place) if (place / "journal.jsonl").exists() else {"running": []}

    def trains(number: int, epoch: int = 1) -> bool:
        return any(t["number"] == number and t["epoch"] >= epoch for t in status()["running"])

    with quick_start(tmp_path, "-m", *LONG) as command:
        wait_until(lambda: trains(0), command)
        (running,) = status()["running"]
        assert math.isfinite(running["value"])
        assert "trainer.batch_size" in running["params"]
        (worker,) = status()["workers"]
        assert f"{worker['host']}/{worker['name']}" == running["worker"]
        assert worker["trials"] == [running["number"]]
        assert "is running" in refused(capsys, "remove", place, "--yes")
        assert "being trained" in refused(capsys, "move", tmp_path / "outputs", tmp_path / "new")

        answer("stop", place, "--trial", "0")
        assert folder_of(tmp_path).trial(0).checkpoint.exists()
        wait_until(lambda: trains(1), command)
        counts = status()["n_by_state"]
        assert (counts["stopped"], counts["running"], status()["state"]) == (1, 1, "running")

        answer("stop", place)
        assert command.wait() == 128 + signal.SIGTERM
    assert (status()["n_by_state"]["stopped"], status()["n_by_state"]["waiting"], status()["state"]) == (1, 1, "open")
    reached = [checkpoint.load(folder_of(tmp_path).trial(n).checkpoint)["epoch"] for n in (0, 1)]

    with quick_start(tmp_path, "-m", *LONG, "hydra.sweeper.pack=2") as command:
        wait_until(lambda: trains(0, reached[0] + 1) and trains(1, reached[1] + 1), command)
        answer("stop", place, "--trial", "0")
        assert status()["n_by_state"]["stopped"] == 1
        assert answer("retry", place, "--trial", "0") == {"queued": [0]}
        wait_until(lambda: trains(0), command)
        command.send_signal(signal.SIGINT)
        assert command.wait() == 128 + signal.SIGINT
    epochs = journal.curves(folder_of(tmp_path).trial(0).journal)["val/loss"].steps.tolist()
    assert epochs == list(range(1, len(epochs) + 1))


def test_a_study_is_moved_and_goes_on_and_is_removed(tmp_path: Path, answer: Callable[..., Any]) -> None:
    """MLflow finds every artifact at the new place, gets nothing twice, and has no run at last."""
    make_store(tmp_path)
    assert quick(tmp_path, "-m", *SMALL, "hydra.sweeper.n_trials=2").returncode == 0
    other = quick(tmp_path, *SMALL[:1], "data.n=96")
    assert other.returncode == 0, other.stderr
    new = tmp_path / "deep" / "new"
    moved = answer("move", tmp_path / "outputs", new)
    assert not (tmp_path / "outputs").exists()
    assert moved["n_locations"] > 4
    (tmp_path / "outputs").symlink_to(new)  # for what reads the store below
    before = rows(new / "mlflow.db")
    assert str(tmp_path / "outputs") not in repr(before["runs"])
    for run in mlflow_runs(tmp_path):
        names = {file.path for file in client(tmp_path).list_artifacts(run.info.run_id)}
        assert "config.yaml" in names
    (tmp_path / "outputs").unlink()

    again = quick(tmp_path, "-m", *SMALL, "hydra.sweeper.n_trials=3", f"output_dir={new}")
    assert "2 of 3 trials are done" in again.stdout
    assert len(rows(new / "mlflow.db")["runs"]) == len(before["runs"]) + 1
    assert [row for row in before["metrics"] if row not in rows(new / "mlflow.db")["metrics"]] == []

    mine = new / "studies" / "s" / "trials" / "0" / "notes.txt"
    mine.write_text("mine")
    plan = plan_removal(new / "studies" / "s")
    assert plan.kept == [mine]
    assert studies.main(["remove", str(new / "studies" / "s"), "--yes"]) == 0
    assert [path for path in (new / "studies").rglob("*") if path.is_file()] == [mine]
    left = [run.info.run_name for run in client_of(new).search_runs(["1"])]
    assert left == ["adam-cyclic-mlp-noisy_sine-s0"]
    sent = {
        path.relative_to(new / "mlartifacts").parts[1] for path in (new / "mlartifacts").rglob("*") if path.is_file()
    }
    assert len(sent) == 1
    assert len(list(new.glob("runs/*/journal.jsonl"))) == 1


def client_of(outputs: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{outputs}/mlflow.db")


def test_a_removal_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(tmp_path, "s")
    study.folder.run.config.write_text("tracking: {mlflow: false}\n")
    study.whole_trial(0)
    command = ["remove", "s", "--output-dir", str(tmp_path)]
    for answer in ("", "n\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        assert studies.main(command) == 1
        assert study.folder.path.exists()
        assert "This removes study s: " in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert studies.main([*command, "--json"]) == 0
    assert not study.folder.path.exists()
    printed = capsys.readouterr()
    assert "This removes study s: " in printed.err, "so that a program can read the JSON alone"
    assert json.loads(printed.out)["kept"] == []


def test_a_storage_with_other_studies_keeps_them(tmp_path: Path) -> None:
    import optuna

    url = f"sqlite:///{tmp_path}/all.db"
    study = Study(tmp_path, "s", storage=url)
    study.folder.run.config.write_text("tracking: {mlflow: false}\n")
    storage = open_storage(url, study.folder)
    for name in ("s", "t"):
        optuna.create_study(storage=storage, study_name=name)
    assert studies.main(["remove", "s", "--yes", "--output-dir", str(tmp_path)]) == 0
    assert [known.study_name for known in open_storage(url, study.folder).get_all_studies()] == ["t"]


def test_names_and_errors_of_others_do_nothing_in_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Study(tmp_path, "odd\x1b[2J", storage="postgresql://me:***@db.example/x")
    assert studies.main(["list", "--output-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert r"odd\x1b[2J" in shown
    assert "if you trust that, give it with its password: --storage" in shown
    table = list_studies(tmp_path)
    assert table.problem.str.startswith("storage: ").tolist() == [True]


# Moves that are interrupted

_STEPS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.copyfile", "sqlite3.connect")


def killed_move(outputs: Path, new: Path, n_steps: int) -> bool:
    """Move in a process of its own that is killed before its n-th step; False if it had fewer."""
    child = os.fork()
    if child == 0:
        left = n_steps

        def step(event: str, _: object) -> None:
            nonlocal left
            left -= event in _STEPS
            if left == 0:
                left = -1  # the next line is an event too
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(step)
        try:
            move_outputs(outputs, new)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a study that MLflow has, and a file of the user's."""
    outputs = make_store(tmp_path_factory.mktemp("uploaded")) / "outputs"
    study = Study(outputs, "s")
    run = study.whole_trial(0)
    study.end(study.folder.run, artifacts=["config.yaml"])
    uploader = Uploader(embedded(outputs))
    for folder in (run, study.folder.run):
        assert uploader.push(folder)
    (outputs / "notes.txt").write_text("mine")
    shutil.copytree(outputs, outputs.with_name("copy"))
    return outputs


@pytest.mark.parametrize("disk", ["the same", "another"])
def test_a_move_that_is_killed_loses_nothing_and_is_completed(
    disk: str, uploaded: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path
    if disk == "another":
        place = Path("/dev/shm") / f"sweep-test-{os.getpid()}"
        if not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
            pytest.skip("there is no other file system here")
        place.mkdir()
    try:
        was_killed, n_steps = True, 0
        outputs, new = uploaded, place / "new"
        while was_killed:
            n_steps += 1 if disk == "the same" else 3
            shutil.rmtree(outputs, ignore_errors=True)
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(uploaded.with_name("copy"), outputs)
            files = sorted(path.relative_to(outputs) for path in outputs.rglob("*") if path.is_file())
            was_killed = killed_move(outputs, new, n_steps)
            for file in files:
                assert (outputs / file).exists() or (new / file).exists(), (n_steps, file)
            if was_killed:
                move_outputs(outputs, new)
            assert not outputs.exists()
            assert sorted(path.relative_to(new) for path in new.rglob("*") if path.is_file()) == files
            assert not list(place.glob("*.moving"))
            known = rows(new / "mlflow.db")
            assert str(uploaded) not in repr(known["runs"])
            for run in client_of(new).search_runs(["1"]):
                assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(new)
        assert n_steps > 4
        uploader = Uploader(embedded(new))
        assert all(uploader.has_all(run) for run in (StudyFolder(new / "studies" / "s").run,))
    finally:
        if disk == "another":
            shutil.rmtree(place)


def test_a_move_overwrites_nothing(uploaded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = uploaded.with_name("copy")
    (tmp_path / "taken").mkdir()
    assert "exists; name a folder" in refused(capsys, "move", copy, tmp_path / "taken")
    assert "is no folder with outputs" in refused(capsys, "move", tmp_path / "taken", tmp_path / "new")
    assert "is inside" in refused(capsys, "move", copy, copy / "new")
    (tmp_path / "link").symlink_to(copy)
    assert "is a link; name the folder itself" in refused(capsys, "move", tmp_path / "link", tmp_path / "new")
    assert "contains a ?" in refused(capsys, "move", copy, tmp_path / "a?b")
    assert (copy / "notes.txt").exists()
