"""`tracking.share_run`: applications and training functions that log to MLflow by themselves, to the trial's run."""

from pathlib import Path

import pytest
from mlflow.entities import Run
from processes import error_line, make_store, mlflow_runs, quick, quick_start
from stores import points
from waiting import wait_until

from sweep import load_study
from sweep.tracking.mlflow_runs import PARENT_TAG

pytestmark = pytest.mark.process

APPLICATION = """
import os

import hydra
import mlflow

import sweep

NAMES = ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")
NAMES += ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")
BEFORE = [os.environ.get(name) for name in NAMES]


def log(cfg):
    mlflow.log_param("lr", f"about {cfg.lr:.1f}")  # which sweep would spell in full
    mlflow.log_metric("own", cfg.lr, step=3)
    mlflow.set_tag("by", "the application")


@hydra.main(config_path=None)
def main(cfg):
    assert os.environ["MLFLOW_RUN_ID"] != BEFORE[0]
    if cfg.starts:
        with mlflow.start_run():
            log(cfg)
    else:
        log(cfg)
    sweep.current_trial().report(1, {"loss": cfg.lr})
    if cfg.lr > 0.5:
        raise ValueError("too large")
    return cfg.lr


if __name__ == "__main__":
    main()
    assert [os.environ.get(name) for name in NAMES] == BEFORE
    assert mlflow.active_run() is None
"""

KILLED = """
import os
import time
from pathlib import Path

import hydra
import mlflow

import sweep


@hydra.main(config_path=None)
def main(cfg):
    trial = sweep.current_trial()
    trial.restore()
    with mlflow.start_run():
        if trial.epoch == 0:
            mlflow.log_param("lr", "its own")
        for epoch in range(trial.epoch + 1, 6):
            mlflow.log_metric("own", cfg.lr, step=epoch)
            trial.report(epoch, {"loss": cfg.lr})
            trial.save(epoch, {})
            if epoch == 3 and not Path(cfg.here).exists():
                Path(cfg.here).write_text(str(os.getpid()))
                time.sleep(600)
    return cfg.lr


if __name__ == "__main__":
    main()
"""

FUNCTION = """
import mlflow


def train(cfg, trial):
    mlflow.log_metric("own", 2.0)
    trial.report(1, {"val/loss": 1.0})
"""

STUDY = ("-m", "hydra/sweeper=study", "hydra/sweeper/pruner=none", "hydra.sweeper.study_name=s")
STUDY += ("hydra.sweeper.tracking.share_run=true",)


def runs(folder: Path) -> tuple[Run, dict[str, Run]]:
    """The parent and its trials, by name, of the only experiment that has any."""
    found = mlflow_runs(folder)
    parents = [one for one in found if PARENT_TAG not in one.data.tags]
    assert len(parents) == 1, "no run stands by itself"
    assert all(one.data.tags.get(PARENT_TAG, parents[0].info.run_id) == parents[0].info.run_id for one in found)
    trials = {one.data.tags["trial"]: one for one in found if one is not parents[0]}
    assert len(trials) == len(found) - 1, "each trial has one run"
    return parents[0], dict(sorted(trials.items()))


@pytest.mark.parametrize("starts", ["true", "false"])
def test_what_an_application_logs_is_in_its_trials_run(tmp_path: Path, starts: str) -> None:
    (make_store(tmp_path) / "app.py").write_text(APPLICATION)
    words = (*STUDY, f"+starts={starts}", "+lr=0.25,0.75,0.375", "+name=x", "hydra/sweeper/sampler=grid")
    done = quick(tmp_path, *words, module="app.py", MLFLOW_RUN_ID="before")
    assert (done.returncode, done.stderr) == (0, "")
    _, trials = runs(tmp_path)
    assert [one.info.status for one in trials.values()] == ["FINISHED", "FAILED", "FINISHED"]
    for one, lr in zip(trials.values(), (0.25, 0.75, 0.375), strict=True):
        assert one.data.params == {"lr": f"about {lr:.1f}", "starts": starts.title(), "name": "x"}
        found = points(one, tmp_path / "outputs" / "mlflow.db")
        assert (found["own"], found["loss"]) == ([(3, lr)], [(1, lr)])
        assert one.data.tags["by"] == "the application"
    assert [trial.state for trial in load_study(tmp_path / "outputs" / "studies" / "s").results] == [
        "complete",
        "failed",
        "complete",
    ]


def test_without_it_an_application_has_runs_of_its_own_and_a_line_says_so(tmp_path: Path) -> None:
    own = 'assert os.environ["MLFLOW_RUN_ID"] != BEFORE[0]'
    (make_store(tmp_path) / "app.py").write_text(APPLICATION.replace(own, "assert 'MLFLOW_RUN_ID' not in os.environ"))
    store = f"sqlite:///{tmp_path}/outputs/mlflow.db"
    words = (*STUDY[:-1], "+starts=true", "+lr=0.25,0.375", "hydra/sweeper/sampler=grid")
    done = quick(tmp_path, *words, module="app.py", MLFLOW_TRACKING_URI=store)
    assert done.returncode == 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert "hydra.sweeper.tracking.share_run=true gives it the trial's run" in line
    assert [one.data.tags["by"] for one in mlflow_runs(tmp_path) if "by" in one.data.tags] == ["the application"] * 2


def test_a_killed_trial_goes_on_in_the_same_run(tmp_path: Path) -> None:
    (make_store(tmp_path) / "app.py").write_text(KILLED)
    words = (*STUDY, "+lr=0.25,0.5", "hydra/sweeper/sampler=grid", f"+here={tmp_path}/here")
    with quick_start(tmp_path, *words, module="app.py") as process:
        wait_until((tmp_path / "here").exists, process)
        process.kill()
    done = quick(tmp_path, *words, module="app.py")
    assert (done.returncode, done.stderr) == (0, "")
    _, trials = runs(tmp_path)
    assert [*trials] == ["0", "1"]
    for one, lr in zip(trials.values(), (0.25, 0.5), strict=True):
        found = points(one, tmp_path / "outputs" / "mlflow.db")
        assert found["own"] == found["loss"] == [(epoch, lr) for epoch in range(1, 6)]
        assert (one.info.status, one.data.params["lr"]) == ("FINISHED", "its own")


def test_without_mlflow_it_trains_all_the_same(tmp_path: Path) -> None:
    own = 'assert os.environ["MLFLOW_RUN_ID"] != BEFORE[0]'
    (tmp_path / "app.py").write_text(
        APPLICATION.replace(own, 'assert "MLFLOW_RUN_ID" not in os.environ; return cfg.lr')
    )
    away = ("hydra.sweeper.tracking.uri=http://127.0.0.1:9", "hydra.sweeper.tracking.close_timeout_s=0")
    done = quick(tmp_path, *STUDY, *away, "+lr=0.25,0.5", "hydra.sweeper.n_trials=2", module="app.py")
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if "has no run" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: MLflow has no run for what trains a trial to log to (")
    assert len(load_study(tmp_path / "outputs" / "studies" / "s").results) == 2


def test_a_training_function_has_a_run_too(tmp_path: Path) -> None:
    (make_store(tmp_path) / "mine.py").write_text(FUNCTION)
    own = ("trainer=function", "trainer.call=mine.train", "tracking.share_run=true", "+n=1,2")
    done = quick(
        tmp_path,
        "-m",
        *own,
        "hydra.sweeper.study_name=s",
        "hydra.sweeper.n_trials=2",
        SWEEP_TARGETS="mine.*",
        PYTHONPATH=str(tmp_path),
    )
    assert (done.returncode, done.stderr) == (0, "")
    _, trials = runs(tmp_path)
    assert [one.data.metrics["own"] for one in trials.values()] == [2.0, 2.0]
    done = quick(tmp_path, "-m", *own, "hydra.sweeper.seeds=2", SWEEP_TARGETS="mine.*", PYTHONPATH=str(tmp_path))
    assert error_line(done).startswith("error: hydra.sweeper.seeds: trains several runs of a trial in turn")


def test_it_is_for_functions_of_the_users_own(tmp_path: Path) -> None:
    done = quick(tmp_path, "tracking.share_run=true")
    assert error_line(done).startswith("error: tracking.share_run: is for a training function or an application")
