"""Runs that are stopped in the middle: killed, interrupted, out of disk. Continued, they end as if nothing had been."""

import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from processes import (
    final_values,
    make_store,
    mlflow_curve,
    mlflow_runs,
    n_recorded,
    only_run,
    quick,
    quick_start,
    recorded,
    run,
    start,
    wait_for_epochs,
    wait_for_helper,
)

from sweep.config.composition import compose
from sweep.config.schema import validate
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.tracking.run_recorder import stored_text
from sweep.tracking.stored_run import stored_config

pytestmark = pytest.mark.process  # commands, servers, a browser

N_EPOCHS = 200
SMALL = ("experiment=debug", "model.widths=[8]", "model.dropout=0.1", f"trainer.epochs={N_EPOCHS}")
EVERY_EPOCH, NEVER = "trainer.checkpoint_interval_s=0", "trainer.checkpoint_interval_s=1000"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    cwd = tmp_path_factory.mktemp("uninterrupted")
    done = quick(cwd, *SMALL, NEVER, "tracking=off")
    assert done.returncode == 0, done.stderr
    assert len(recorded(only_run(cwd))["val/loss"][0]) == N_EPOCHS
    return only_run(cwd)


def assert_bitwise_equal(resumed: RunFolder, uninterrupted: RunFolder) -> None:
    """The same steps, none twice, and the same numbers, the test split's too."""
    assert recorded(resumed) == recorded(uninterrupted)
    assert final_values(resumed) == final_values(uninterrupted)


def assert_mlflow_has_it_once(cwd: Path) -> None:
    (logged,) = mlflow_runs(cwd)
    assert logged.info.status == "FINISHED"
    curves = recorded(only_run(cwd))
    for name in ("train/loss", "val/loss", "lr", "step/loss", "step/lr"):
        assert mlflow_curve(cwd, logged.info.run_id, name) == curves[name]


def kill(cwd: Path, *overrides: str, at_epoch: int) -> None:
    """Starts a run and kills it, as the kernel does when memory is short, once it has recorded so many epochs."""
    with quick_start(make_store(cwd), *overrides) as process:
        wait_for_epochs(cwd, at_epoch, process)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("checkpoints", [EVERY_EPOCH, NEVER], ids=["after checkpoints", "before the first checkpoint"])
def test_a_run_killed_in_the_middle_and_resumed_is_bitwise_the_uninterrupted_one(
    checkpoints, tmp_path, tmp_path_factory, uninterrupted
):
    kill(tmp_path, *SMALL, checkpoints, at_epoch=20)
    folder = only_run(tmp_path)
    assert folder.checkpoint.exists() == (checkpoints == EVERY_EPOCH)
    assert 20 <= n_recorded(tmp_path) < N_EPOCHS
    with open(folder.journal, "ab") as file:
        file.write(b'{"kind": "metrics", "ti')  # a kill may tear the last line
    wait_for_helper(tmp_path)  # it outlives the run, and sends what there is
    assert [logged.info.status for logged in mlflow_runs(tmp_path)] == ["KILLED"]

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = quick(elsewhere, f"resume={folder.path}")
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stdout
    assert_bitwise_equal(folder, uninterrupted)
    assert_mlflow_has_it_once(tmp_path)
    assert list(elsewhere.iterdir()) == []  # all of it lies in the run's own output_dir


# Ctrl-C


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run was stopped with Ctrl-C, which a terminal sends to the whole foreground process group."""
    cwd = make_store(tmp_path_factory.mktemp("interrupted"))
    with start(cwd, *SMALL, NEVER) as process:
        wait_for_epochs(cwd, 20, process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130, err
    assert err == ""
    assert f"python -m sweep.run resume={only_run(cwd).path}" in out
    return cwd


@pytest.fixture
def stopped(interrupted: Path, tmp_path: Path) -> Path:
    """A copy of `interrupted`, to go on with."""
    shutil.copytree(interrupted / "outputs", tmp_path / "outputs")
    return tmp_path


def edit(folder: RunFolder, *changes: str) -> None:
    config = OmegaConf.merge(OmegaConf.load(folder.config), OmegaConf.from_dotlist(list(changes)))
    OmegaConf.save(config, folder.config)


def test_ctrl_c_keeps_a_checkpoint_and_marks_the_mlflow_run_killed(interrupted):
    assert only_run(interrupted).checkpoint.exists()
    (logged,) = mlflow_runs(interrupted)
    assert logged.info.status == "KILLED"
    assert mlflow_curve(interrupted, logged.info.run_id, "val/loss") == recorded(only_run(interrupted))["val/loss"]
    assert 20 <= n_recorded(interrupted) < N_EPOCHS


def test_a_run_stopped_with_ctrl_c_and_resumed_is_bitwise_the_uninterrupted_one(stopped, uninterrupted):
    folder = only_run(stopped)
    done = quick(stopped, f"resume={folder.path.relative_to(stopped)}")
    assert done.returncode == 0, done.stderr
    assert_bitwise_equal(folder, uninterrupted)
    assert_mlflow_has_it_once(stopped)


def test_a_truncated_checkpoint_is_refused(stopped):
    folder = only_run(stopped)
    edit(folder, "tracking.mlflow=false")
    os.truncate(folder.checkpoint, folder.checkpoint.stat().st_size // 2)
    before = folder.journal.read_bytes()
    done = quick(stopped, f"resume={folder.path}")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: resume: ")
    assert "checkpoint.pt" in line
    assert done.returncode == 2
    assert folder.journal.read_bytes() == before


def test_a_checkpoint_of_another_architecture_is_refused(stopped):
    folder = only_run(stopped)
    edit(folder, "tracking.mlflow=false", "model.widths=[16]")
    before = folder.journal.read_bytes()
    done = quick(stopped, f"resume={folder.path}")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: resume: ")
    assert "another model" in line
    assert done.returncode == 2
    assert folder.journal.read_bytes() == before


@pytest.mark.parametrize("change", ["trainer.epochs=300", "optimizer=sgd", "+model.act=tanh"])
def test_a_resumed_run_cannot_be_changed(change, interrupted):
    done = quick(interrupted, f"resume={only_run(interrupted).path}", change)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: resume: ")
    assert f"'{change}'" in line
    assert done.returncode == 2


def test_a_finished_run_is_not_resumed(uninterrupted, tmp_path):
    done = quick(tmp_path, f"resume={uninterrupted.path}")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: resume: ")
    assert "has finished" in line
    assert done.returncode == 2


def test_a_folder_that_is_no_run_is_left_as_it_was(tmp_path):
    (tmp_path / "photos").mkdir()
    done = quick(tmp_path, "resume=photos")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: resume: ")
    assert "photos" in line
    assert done.returncode == 2
    assert list((tmp_path / "photos").iterdir()) == []


def test_a_running_run_is_not_resumed_by_another_process_and_sigterm_stops_it_in_order(tmp_path):
    with start(tmp_path, *SMALL, NEVER, "trainer.epochs=1000000", "tracking=off") as process:
        wait_for_epochs(tmp_path, 1, process)
        folder = only_run(tmp_path)
        second = run(tmp_path, f"resume={folder.path}")
        process.terminate()
        process.communicate()
    (line,) = second.stderr.splitlines()
    assert line.startswith("error: resume: ")
    assert "another process" in line
    assert second.returncode == 2
    assert process.returncode == 128 + signal.SIGTERM
    assert folder.checkpoint.exists()
    assert journal.status(folder.journal) == "KILLED"


# A full disk


def test_a_full_disk_is_a_clear_error_and_what_was_recorded_before_is_whole(tmp_path, uninterrupted):
    """The journal outgrows the largest file that the process may write."""
    limit = 40_000  # bytes; the checkpoint takes 22,000, the whole journal 100,000
    with quick_start(tmp_path, *SMALL, EVERY_EPOCH, "tracking=off") as process:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        _, err = process.communicate()
    (line,) = err.splitlines()
    folder = only_run(tmp_path)
    assert line.startswith("error: output_dir: ")
    assert f"resume={folder.path}" in line
    assert process.returncode == 1

    assert folder.journal.stat().st_size <= limit
    assert folder.journal.read_bytes().endswith(b"}\n")
    kept, complete = recorded(folder), recorded(uninterrupted)
    n = len(kept["val/loss"][0])
    assert 10 <= n < N_EPOCHS
    assert kept["val/loss"] == (complete["val/loss"][0][:n], complete["val/loss"][1][:n])

    done = quick(tmp_path, f"resume={folder.path}")  # with room again
    assert done.returncode == 0, done.stderr
    assert_bitwise_equal(folder, uninterrupted)


def test_a_text_that_looks_like_a_reference_is_the_same_text_in_a_stored_config(tmp_path):
    run = RunFolder(tmp_path)
    config = validate(compose([r"experiment_name=\${oc.env:HOME}", r"model.activation='\${'"]))
    run.config.write_text(stored_text(config), encoding="utf-8")
    assert stored_config(run, config) == config
    assert config.experiment_name == "${oc.env:HOME}"
