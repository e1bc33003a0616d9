"""Studies as a user starts them: `python -m sweep.run -m`, real processes, the real stores."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from omegaconf import OmegaConf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from processes import (
    empty_store,
    error_line,
    make_store,
    mlflow_curve,
    mlflow_runs,
    only_run,
    quick,
    quick_side_by_side,
    quick_start,
    recorded,
    run,
    start,
)
from study_folders import epochs_of, folder_of, only_study
from waiting import wait_until

from sweep.config.best_config import best_config
from sweep.config.composition import compose
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.training import checkpoint
from sweep.utils.checked_file import OF_AN_OPTION, write_checked
from sweep.utils.files import from_yaml

pytestmark = pytest.mark.process  # commands, servers, a browser

SMALL = ("experiment=debug", "tracking=off")  # 2 epochs of 64 samples
NAMED = "hydra.sweeper.study_name=s"
N_TRIALS = 12  # of `searched`


def study_of(folder: StudyFolder) -> optuna.Study:
    """Opened as any other program would, by Optuna's own backend."""
    storage = JournalStorage(JournalFileBackend(str(folder.storage)))
    return optuna.load_study(study_name=folder.path.name, storage=storage)


def trials_of(folder: StudyFolder) -> list[FrozenTrial]:
    return study_of(folder).get_trials()


def tried(folder: StudyFolder) -> list[dict[str, Any]]:
    return [t.params for t in trials_of(folder)]


class Searched(NamedTuple):
    cwd: Path
    folder: StudyFolder
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Searched:
    """Two optimizers, three workers, twelve trials; every other test only reads it."""
    cwd = tmp_path_factory.mktemp("searched")
    done = quick(
        cwd,
        *("-m", "experiment=debug", "optimizer=sgd,adam", "trainer.epochs=4"),
        *(f"hydra.sweeper.n_trials={N_TRIALS}", "hydra.sweeper.n_jobs=3"),
    )
    assert done.returncode == 0, done.stderr
    return Searched(cwd, only_study(cwd), done.stdout, done.stderr)


def test_a_study_has_its_trials_each_once_and_shows_one_line_for_each(searched):
    trials = trials_of(searched.folder)
    assert [t.number for t in trials] == list(range(N_TRIALS))
    assert {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert sorted(int(path.name) for path in searched.folder.trials.iterdir()) == list(range(N_TRIALS))
    lines = re.findall(rf"^\d+/{N_TRIALS}  trial (\d+)", searched.stdout, re.MULTILINE)
    assert sorted(map(int, lines)) == list(range(N_TRIALS))
    assert searched.stderr == ""


def test_workers_never_find_the_database_locked(searched):
    assert "locked" not in searched.stderr + (searched.cwd / "outputs" / "mirror.log").read_text()


def test_an_option_is_sampled_with_the_ranges_that_it_declares(searched):
    for trial in trials_of(searched.folder):
        option = trial.params["optimizer"]
        assert set(trial.params) == {
            "optimizer",
            f"scheduler.base_lr[{option}]",
            f"scheduler.max_lr[{option}]",
            "trainer.batch_size",
        }
        low, high = {"sgd": (0.03, 1.0), "adam": (1e-3, 1e-1)}[option]
        assert low <= trial.params[f"scheduler.max_lr[{option}]"] <= high
    assert {t.params["optimizer"] for t in trials_of(searched.folder)} == {"sgd", "adam"}


def test_trial_0_is_the_configuration_as_composed(searched):
    assert tried(searched.folder)[0] == {
        "optimizer": "adam",
        "scheduler.base_lr[adam]": 1e-4,
        "scheduler.max_lr[adam]": 1e-2,
        "trainer.batch_size": 16,
    }


def test_a_trials_value_is_its_best_validation_loss(searched):
    for trial in trials_of(searched.folder):
        losses = recorded(searched.folder.trial(trial.number))["val/loss"][1]
        assert trial.value == min(losses)
        assert trial.intermediate_values == {i: min(losses[:i]) for i in range(1, len(losses) + 1)}


def test_mlflow_has_a_parent_and_a_child_for_each_trial_that_agrees_with_optuna(searched):
    runs = mlflow_runs(searched.cwd)
    (parent,) = [r for r in runs if r.data.tags.get("kind") == "study"]
    children = {int(r.data.tags["trial"]): r for r in runs if "trial" in r.data.tags}
    assert len(runs) == 1 + N_TRIALS
    study = study_of(searched.folder)
    for trial in study.get_trials():
        child = children[trial.number]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert (child.data.tags["state"], child.info.status) == (trial.state.name, "FINISHED")
        assert child.data.metrics["best/val_loss"] == trial.value
        for name, value in trial.params.items():
            key = name.partition("[")[0]
            assert str(value) == (child.data.tags if key == "optimizer" else child.data.params)[key]
        steps, values = mlflow_curve(searched.cwd, child.info.run_id, "val/loss")
        assert (steps, values) == recorded(searched.folder.trial(trial.number))["val/loss"]
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == searched.folder.path.name
    assert parent.data.metrics["best_value"] == study.best_value
    assert parent.data.tags["best.trial"] == str(study.best_trial.number)
    counted = {state: parent.data.metrics[f"trials/{state}"] for state in ("complete", "pruned", "failed")}
    pruned = sum(t.state == TrialState.PRUNED for t in study.get_trials())
    assert counted == {"complete": N_TRIALS - pruned, "pruned": pruned, "failed": 0}


def test_the_parent_has_the_history_as_a_curve_and_the_results_and_plots_as_artifacts(searched):
    (parent,) = [r for r in mlflow_runs(searched.cwd) if r.data.tags.get("kind") == "study"]
    complete = [t for t in trials_of(searched.folder) if t.state == TrialState.COMPLETE]
    steps, values = mlflow_curve(searched.cwd, parent.info.run_id, "value")
    assert (steps, values) == ([t.number for t in complete], [t.value for t in complete])
    _, best = mlflow_curve(searched.cwd, parent.info.run_id, "best_value")
    assert best == [min(values[: i + 1]) for i in range(len(values))]
    assert artifact_names(parent) >= {"optimization_results.yaml", "best.yaml", "plots", "experiment"}


def test_the_results_are_written_as_the_stock_sweeper_writes_them(searched):
    study = study_of(searched.folder)
    results = OmegaConf.load(searched.folder.results)
    plain = {name.partition("[")[0]: value for name, value in study.best_params.items()}
    assert results == {"name": "optuna", "best_params": plain, "best_value": study.best_value}


def test_optuna_dashboard_opens_the_storage(searched):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from optuna_dashboard._cli import main; main()", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port), str(searched.folder.storage)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: answer_of(port) is not None)
        (study,) = answer_of(port)["study_summaries"]
        assert study["study_name"] == searched.folder.path.name
    finally:
        process.terminate()
        process.wait()


def answer_of(port: int) -> Any:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies") as answer:
            return json.load(answer)
    except OSError:  # it is not up yet
        return None


@pytest.mark.parametrize("way", ["from_study", "option"])
def test_the_best_configuration_trains_again_to_the_same_value(searched, way, tmp_path):
    if way == "from_study":
        again = quick(
            tmp_path, f"output_dir={searched.cwd}/outputs", f"from_study={searched.folder.path.name}", *SMALL[1:]
        )
        (path,) = (searched.cwd / "outputs" / "runs").iterdir()
        folder = RunFolder(path)
    else:
        again = quick(tmp_path, "--config-dir", str(searched.folder.path), "experiment=best", *SMALL[1:])
        folder = only_run(tmp_path)
    assert again.returncode == 0, again.stderr
    best = study_of(searched.folder).best_trial
    assert recorded(folder) == recorded(searched.folder.trial(best.number))


def test_a_best_configuration_without_a_key_of_its_option_is_no_option(tmp_path):
    adamax = ("optimizer._target_=torch.optim.Adamax", "~optimizer.fused", "tracking=off")
    done = quick(tmp_path, "-m", *SMALL, *adamax, NAMED, "hydra.sweeper.n_trials=1")
    assert (done.returncode, done.stderr) == (0, "")
    folder = folder_of(tmp_path)
    assert "~optimizer.fused" in folder.best.read_text()
    assert not folder.option.exists()
    folder.option.parent.mkdir()
    folder.option.write_text("the user's own")
    assert quick(tmp_path, "-m", *SMALL, *adamax, NAMED, "hydra.sweeper.n_trials=1").returncode == 0
    assert folder.option.read_text() == "the user's own"
    write_checked(folder.option, "seed: 7\n", first=OF_AN_OPTION)  # as of a trial that was the best before
    assert quick(tmp_path, "-m", *SMALL, *adamax, NAMED, "hydra.sweeper.n_trials=1").returncode == 0
    assert not folder.option.parent.exists()


@pytest.mark.parametrize("storage", ["optuna.log", "study.db"])
def test_trials_of_a_study_whose_storage_is_gone_are_not_taken_for_those_of_a_new_one(storage, tmp_path):
    kept = [f"hydra.sweeper.storage=sqlite:///{storage}"] if storage == "study.db" else []
    command = ("-m", *SMALL, NAMED, "hydra.sweeper.n_trials=1", *kept)
    assert quick(tmp_path, *command).returncode == 0
    (tmp_path / storage if kept else folder_of(tmp_path).storage).unlink()
    done = quick(tmp_path, *command, "data=digits", "split.max_samples=100")
    assert error_line(done).startswith("error: hydra.sweeper.study_name: ")
    assert f"{storage}' is damaged (the study is not in it)" in done.stderr
    assert done.returncode != 0


def test_the_same_command_resumes_and_finds_nothing_left_to_do(searched):
    before = searched.folder.storage.read_bytes()
    done = quick(
        searched.cwd,
        *("-m", "experiment=debug", "optimizer=sgd,adam", "trainer.epochs=4"),
        *(f"hydra.sweeper.n_trials={N_TRIALS}", "hydra.sweeper.n_jobs=3"),
    )
    assert done.returncode == 0, done.stderr
    assert f"{N_TRIALS} of {N_TRIALS} trials are done" in done.stdout
    assert searched.folder.storage.read_bytes() == before
    assert len(mlflow_runs(searched.cwd)) == 1 + N_TRIALS


def test_the_recorded_command_goes_on_with_the_study(searched):
    (parent,) = [r for r in mlflow_runs(searched.cwd) if r.data.tags.get("kind") == "study"]
    assert parent.data.tags["mlflow.source.name"] == parent.data.tags["command"]
    python, *arguments = shlex.split(parent.data.tags["command"])
    assert python == "python"
    done = run(searched.cwd, *arguments, command=(sys.executable,))
    assert done.returncode == 0, done.stderr
    assert f"study {searched.folder.path.name}: resuming, {N_TRIALS} of {N_TRIALS} trials are done" in done.stdout


def test_the_outcome_says_how_to_see_the_study_in_mlflow(searched):
    line = f"Compare trials:  mlflow ui --backend-store-uri sqlite:///{searched.cwd}/outputs/mlflow.db\n"
    assert line in searched.stdout


def test_the_command_that_trains_again_finds_a_study_in_a_folder_of_the_users_own(tmp_path):
    done = quick(tmp_path, "-m", *SMALL, NAMED, "hydra.sweeper.n_trials=1", "output_dir='my outputs'")
    (command,) = re.findall("^Train it again:  python (.*)$", done.stdout, re.MULTILINE)
    assert "Compare trials" not in done.stdout
    again = run(tmp_path, *shlex.split(command), command=(sys.executable,))
    assert again.returncode == 0, again.stderr
    assert len(list((tmp_path / "my outputs" / "runs").iterdir())) == 1


def artifact_names(parent: Run) -> set[str]:
    uri = parent.info.artifact_uri
    assert uri is not None
    return {path.name for path in Path(uri.removeprefix("file://")).iterdir()}


def test_n_trials_is_the_total_and_a_resumed_study_proposes_what_a_whole_one_would(tmp_path):
    random = ("hydra/sweeper/sampler=random", "hydra/sweeper/pruner=none", *SMALL, "-m")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for cwd in (whole, parts):
        cwd.mkdir()
    assert quick(whole, *random, NAMED, "hydra.sweeper.n_trials=5").returncode == 0
    for total in ("2", "5"):
        done = quick(parts, *random, NAMED, f"hydra.sweeper.n_trials={total}")
        assert done.returncode == 0, done.stderr
    assert "2 of 5 trials are done" in done.stdout
    assert tried(folder_of(parts)) == tried(folder_of(whole))
    assert [t.value for t in trials_of(folder_of(parts))] == [t.value for t in trials_of(folder_of(whole))]


def test_a_changed_study_is_refused_with_the_difference_and_may_be_accepted(tmp_path):
    assert quick(tmp_path, "-m", *SMALL, NAMED, "hydra.sweeper.n_trials=2").returncode == 0
    changed = (
        "-m",
        *SMALL,
        NAMED,
        "hydra.sweeper.n_trials=3",
        "trainer.epochs=3",
        "scheduler.max_lr=tag(log,interval(1e-3,2e-2))",
    )
    before = folder_of(tmp_path).storage.read_bytes()
    refused = quick(tmp_path, *changed)
    line = error_line(refused)
    assert line.startswith("error: hydra.sweeper.study_name: ")
    assert "trainer.epochs = 2, now 3" in line
    assert "search.scheduler.max_lr = 0.001 to 0.1, log, now 0.001 to 0.02, log" in line
    assert refused.returncode == 2
    assert folder_of(tmp_path).storage.read_bytes() == before
    accepted = quick(tmp_path, *changed, "hydra.sweeper.accept_changes=true")
    assert accepted.returncode == 0, accepted.stderr
    assert len(trials_of(folder_of(tmp_path))) == 3
    _assert_the_best_is_as_it_was_trained(tmp_path)
    other_choices = quick(tmp_path, *changed, "trainer.batch_size=8,16,32", "hydra.sweeper.accept_changes=true")
    assert "as trainer.batch_size cannot change within a study" in error_line(other_choices)
    other_way = quick(tmp_path, *changed, "hydra.sweeper.direction=maximize", "hydra.sweeper.accept_changes=true")
    assert error_line(other_way).startswith("error: hydra.sweeper.direction: ")


def _assert_the_best_is_as_it_was_trained(cwd: Path) -> None:
    """Whatever has been changed since, and where an option has become one of several."""
    folder = folder_of(cwd)
    several = ("optimizer=adam,sgd", "trainer.epochs=1", "hydra.sweeper.n_trials=4")
    done = quick(cwd, "-m", *SMALL, NAMED, *several, "hydra.sweeper.accept_changes=true")
    assert done.returncode == 0, done.stderr
    assert [*OmegaConf.load(folder.trial(3).overrides)] != [*OmegaConf.load(folder.trial(0).overrides)]
    best = OmegaConf.load(folder.best)
    assert best.trial < 3
    assert best.overrides == OmegaConf.load(folder.trial(best.trial).overrides)
    again = best_config(str(cwd / "outputs"), "s", [])
    trained = OmegaConf.load(folder.trial(best.trial).config)
    assert (again.trainer, again.optimizer, again.scheduler) == (trained.trainer, trained.optimizer, trained.scheduler)


FAILING = """
from torch import nn


class Fragile(nn.Module):
    def __init__(self, in_features: int, out_features: int, width: int):
        super().__init__()
        self.layers = nn.Linear(in_features, out_features)
        self.width = width

    def forward(self, x):
        if self.training and self.width > 3:
            raise RuntimeError(f"width {self.width} is too much")
        return self.layers(x)
"""


def with_fragile_model(cwd: Path) -> dict[str, Any]:
    (cwd / "mypkg").mkdir()
    (cwd / "mypkg" / "__init__.py").write_text(FAILING)
    return {"PYTHONPATH": str(cwd), "SWEEP_TARGETS": "mypkg.*"}


FRAGILE = ("model._target_=mypkg.Fragile", "~model.widths", "~model.activation", "~model.dropout")


def test_a_trial_that_raises_fails_with_its_traceback_and_the_study_goes_on(tmp_path):
    environment = with_fragile_model(tmp_path)
    done = quick(
        make_store(tmp_path),
        *("-m", "experiment=debug", *FRAGILE, "+model.width=range(1,6)", "scheduler=constant", "optimizer.lr=0.01"),
        *("trainer.batch_size=16", "hydra/sweeper/sampler=grid", NAMED),
        **environment,
    )
    assert done.returncode == 0, done.stderr
    trials = trials_of(folder_of(tmp_path))
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 3 + [TrialState.FAIL] * 2
    for trial in trials[3:]:
        written = folder_of(tmp_path).trial(trial.number).error.read_text()
        assert "Traceback" in written
        assert f"RuntimeError: width {trial.params['model.width']} is too much" in written
    failed = [r for r in mlflow_runs(tmp_path) if r.info.status == "FAILED"]
    assert sorted(r.data.tags["trial"] for r in failed) == ["3", "4"]
    assert all("is too much" in r.data.tags["error"] and r.data.tags["state"] == "FAIL" for r in failed)
    assert all("error.txt" in artifact_names(r) for r in failed)
    assert "failed: training failed at step 1: RuntimeError: width 4 is too much" in done.stdout
    assert done.stderr == ""


def test_a_study_whose_first_trials_all_fail_stops_with_the_first_error(tmp_path):
    environment = with_fragile_model(tmp_path)
    command = ("-m", *SMALL, *FRAGILE, "+model.width=range(4,40)", "trainer.batch_size=16", NAMED)
    done = quick(tmp_path, *command, **environment)
    assert done.returncode == 1
    line = error_line(done)
    assert line.startswith("error: study s: too many trials fail; the first, trial 0: training failed at step 1")
    assert len(trials_of(folder_of(tmp_path))) == 3
    again = quick(tmp_path, *command, **environment)  # which may have been mended: the canary starts afresh
    assert again.returncode == 1
    assert len(trials_of(folder_of(tmp_path))) == 6


@pytest.mark.parametrize(("widths", "status"), [("4,5", 1), ("1,2,3,4,5,6", 0), ("1,2,4,5,6,7", 1)])
def test_the_exit_status_tells_whether_too_many_of_a_few_trials_failed(widths, status, tmp_path):
    environment = with_fragile_model(tmp_path)
    grid = (f"+model.width={widths}", "scheduler=constant", "optimizer.lr=0.01", "trainer.batch_size=16")
    done = quick(tmp_path, "-m", *SMALL, *FRAGILE, *grid, "hydra/sweeper/sampler=grid", NAMED, **environment)
    assert done.returncode == status, done.stderr
    assert len(trials_of(folder_of(tmp_path))) == len(widths.split(","))


def test_a_configuration_that_cannot_even_begin_is_a_failed_trial_with_a_run_of_its_own(tmp_path):
    done = quick(
        make_store(tmp_path),
        *(
            "-m",
            "experiment=debug",
            "model.activation=relu,tanh,nope",
            "scheduler=constant",
            "optimizer.lr=0.01",
            NAMED,
        ),
        *("hydra/sweeper/sampler=grid", "trainer.batch_size=16"),
    )
    assert done.returncode == 0, done.stderr
    (failed,) = [t for t in trials_of(folder_of(tmp_path)) if t.state == TrialState.FAIL]
    (child,) = [r for r in mlflow_runs(tmp_path) if r.info.status == "FAILED"]
    assert child.data.tags["trial"] == str(failed.number)
    assert "'nope'" in child.data.tags["error"]
    assert child.data.params["model.activation"] == "nope"


def test_a_trial_that_diverges_is_pruned_so_that_the_sampler_learns(tmp_path):
    done = quick(
        make_store(tmp_path),
        *("-m", "experiment=debug", "optimizer=sgd", "scheduler=constant", "optimizer.lr=0.01,2", NAMED),
        *("trainer.batch_size=32", "trainer.epochs=30", "hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=none"),
    )
    assert done.returncode == 0, done.stderr
    good, diverged = trials_of(folder_of(tmp_path))
    assert (good.state, diverged.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    finite = recorded(folder_of(tmp_path).trial(1))["val/loss"][1]
    assert diverged.value == min(finite)  # the last that the study heard of, the best so far
    (child,) = [r for r in mlflow_runs(tmp_path) if r.data.tags.get("diverged") == "true"]
    assert (child.data.tags["state"], child.info.status) == ("PRUNED", "FINISHED")
    assert done.stderr == ""


_BLIND = """
import torch
from torch import nn


class Blind(nn.Linear):
    def forward(self, x):
        blind = not self.training and len(x) < 8  # the test split only
        return torch.full((len(x), 1), torch.nan) if blind else super().forward(x)
"""


def test_an_objective_that_is_no_number_makes_the_trial_fail(tmp_path):
    (tmp_path / "blind.py").write_text(_BLIND)
    model = ("model._target_=blind.Blind", "~model.widths", "~model.activation", "~model.dropout", "split.test=0.1")
    done = quick(
        make_store(tmp_path),
        *("-m", "experiment=debug", *model, "trainer.batch_size=16,8", "hydra/sweeper/sampler=grid", NAMED),
        *("scheduler=constant", "optimizer.lr=0.01", "hydra.sweeper.objective=test/mse"),
        PYTHONPATH=str(tmp_path),
        SWEEP_TARGETS="blind.*",
    )
    assert done.returncode == 1
    trials = trials_of(folder_of(tmp_path))
    assert [(t.state, t.values) for t in trials] == [(TrialState.FAIL, None)] * 2
    assert trials[0].user_attrs["problem"] == "test/mse is nan"
    assert "ValueError: test/mse is nan" in folder_of(tmp_path).trial(0).error.read_text()
    children = [r for r in mlflow_runs(tmp_path) if "trial" in r.data.tags]
    assert [(r.info.status, r.data.tags["state"]) for r in children] == [("FAILED", "FAIL")] * 2


_KILLED_AS_IT_BEGINS = """
import os, signal, sys
import optuna
from sweep.run import main

n, set_user_attr = int(sys.argv.pop(1)), optuna.Study.set_user_attr

def set_or_die(*arguments):
    global n
    n -= 1
    if n == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    set_user_attr(*arguments)

optuna.Study.set_user_attr = set_or_die
main()
"""


@pytest.mark.parametrize("n_steps", [1, 2])
def test_a_study_whose_first_command_was_killed_as_it_began_is_begun_by_the_next(n_steps, tmp_path):
    command = ("-m", *SMALL, NAMED, "hydra.sweeper.n_trials=1")
    killed = run(tmp_path, str(n_steps), *command, command=(sys.executable, "-c", _KILLED_AS_IT_BEGINS))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(study_of(folder_of(tmp_path)).user_attrs) == n_steps - 1
    done = quick(tmp_path, *command, "trainer.epochs=3")  # which it may be, as nothing was tried
    assert done.returncode == 0, done.stderr
    study = study_of(folder_of(tmp_path))
    assert study.user_attrs["identity"]["trainer.epochs"] == "3"
    start = journal.first(folder_of(tmp_path).trial(0).journal, "start")
    assert start is not None
    assert study.user_attrs["uid"] == start["parent"]["uid"]
    other = quick(tmp_path, *command, "trainer.epochs=4")
    assert "trainer.epochs = 3, now 4" in error_line(other)


LONG = (
    *("experiment=debug", "data.n=2000", "split.max_samples=2000", "trainer.epochs=60", "hydra/sweeper/pruner=none"),
    *("trainer.batch_size=32", "hydra.sweeper.n_trials=2", "hydra/sweeper/sampler=random", NAMED),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> StudyFolder:
    """The study LONG that nobody stopped."""
    cwd = tmp_path_factory.mktemp("whole")
    assert quick(cwd, "-m", *LONG, "tracking=off").returncode == 0
    return folder_of(cwd)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_a_study_that_is_stopped_resumes_its_trial_from_the_checkpoint(signum, whole, tmp_path):
    stopped = make_store(tmp_path)
    begin = start if signum == signal.SIGINT else quick_start
    with begin(stopped, "-m", *LONG) as process:
        wait_until(lambda: epochs_of(stopped, 0) >= 10, process)
        process.send_signal(signum)
        out, err = process.communicate()
    assert process.returncode == (130 if signum == signal.SIGINT else -signal.SIGKILL), err
    if signum == signal.SIGINT:
        assert trials_of(folder_of(stopped))[0].state == TrialState.WAITING
        assert "1 of 2" not in out
        assert err == ""
    n_before = epochs_of(stopped, 0)
    assert n_before < 60
    done = quick(stopped, "-m", *LONG)
    assert done.returncode == 0, done.stderr
    assert [(t.number, t.state, t.params, t.value) for t in trials_of(folder_of(stopped))] == [
        (t.number, t.state, t.params, t.value) for t in trials_of(whole)
    ]
    resumed = folder_of(stopped).trial(0)
    assert recorded(resumed) == recorded(whole.trial(0))
    assert sum(record["kind"] == "start" for record, _ in journal.read(resumed.journal)) == 2
    children = [r for r in mlflow_runs(stopped) if "trial" in r.data.tags]
    assert sorted((r.data.tags["trial"], r.info.status) for r in children) == [("0", "FINISHED"), ("1", "FINISHED")]


WHOLE_RATE = (*LONG, "tracking=off", "scheduler=constant", "hydra.sweeper.enqueue=[{optimizer.lr: 1}]")


@pytest.fixture(scope="module")
def stopped_at_a_whole_rate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study killed in trial 1, whose learning rate is the whole number 1 in a range of floats."""
    cwd = tmp_path_factory.mktemp("whole_rate")
    with quick_start(cwd, "-m", *WHOLE_RATE, "optimizer.lr=0.1", "optimizer.lr=interval(0.001,2)") as process:
        wait_until(lambda: epochs_of(cwd, 1) >= 5, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert 5 <= epochs_of(cwd, 1) < 60
    return cwd


@pytest.mark.parametrize("change", ["none", "prefix", "earlier version"])
def test_a_trial_resumes_when_its_values_are_the_same_but_written_otherwise(change, stopped_at_a_whole_rate, tmp_path):
    cwd = shutil.copytree(stopped_at_a_whole_rate, tmp_path / "copy")
    run = folder_of(cwd).trial(1)
    if change == "earlier version":
        run.overrides.unlink()
    swept = ("++" if change == "prefix" else "") + "optimizer.lr=interval(0.001,2)"
    done = quick(cwd, "-m", *WHOLE_RATE, "optimizer.lr=0.1", swept)
    assert done.returncode == 0, done.stderr
    assert trials_of(folder_of(cwd))[1].params["optimizer.lr"] == 1.0
    assert epochs_of(cwd, 1) == 60
    assert sum(record["kind"] == "start" for record, _ in journal.read(run.journal)) == 2


@pytest.mark.parametrize(
    ("launcher", "n_jobs", "moment", "signum"),
    [
        ("basic", 1, "trials/0/.lock", signal.SIGINT),  # torch is being loaded
        ("joblib", 2, "workers", signal.SIGHUP),
        ("joblib", 2, "workers", signal.SIGTERM),
        ("joblib", 2, "trials/0/.lock", signal.SIGINT),
        ("submitit_local", 2, "workers", signal.SIGINT),
    ],
)
def test_ctrl_c_or_a_closed_terminal_while_workers_start_ends_them_all(launcher, n_jobs, moment, signum, tmp_path):
    command = ("-m", *LONG, "tracking=off", f"hydra.sweeper.n_jobs={n_jobs}", f"hydra/launcher={launcher}")
    with start(tmp_path, *command) as process:
        wait_until((folder_of(tmp_path).path / moment).exists, process)
        os.killpg(process.pid, signum)  # as a terminal does
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, err
    assert err == ""
    wait_until(lambda: not group_lives(process.pid))
    assert not any(t.state.is_finished() for t in trials_of(folder_of(tmp_path)))


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_command_takes_the_record_over_from_one_that_stops(tmp_path):
    make_store(tmp_path)
    with quick_start(tmp_path, "-m", *LONG) as first, quick_start(tmp_path, "-m", *LONG) as second:
        for number in (0, 1):
            wait_until(lambda n=number: epochs_of(tmp_path, n) >= 1)
        first.send_signal(signal.SIGINT)
        first.communicate()
        _, err = second.communicate()
    assert second.returncode == 0, err
    runs = mlflow_runs(tmp_path)
    assert sorted((r.data.tags.get("trial", "parent"), r.info.status) for r in runs) == [
        *((str(number), "FINISHED") for number in range(2)),
        ("parent", "FINISHED"),
    ]


def test_a_second_command_adds_workers_and_frees_them_when_it_ends(tmp_path):
    """The first goes on with what they trained: each epoch of each trial is trained once."""
    command = ("-m", *LONG, "tracking=off", "hydra.sweeper.n_trials=3")
    with quick_start(tmp_path, *command) as first:
        wait_until(lambda: epochs_of(tmp_path, 0) >= 1, first)
        with quick_start(tmp_path, *command, "hydra.sweeper.n_jobs=2") as second:
            for number in (1, 2):
                wait_until(lambda n=number: epochs_of(tmp_path, n) >= 1, second)
            launched = {t.user_attrs["worker"].rpartition("-")[0] for t in trials_of(folder_of(tmp_path))}
            assert len(launched) == 2
            second.send_signal(signal.SIGTERM)
            _, err = second.communicate()
        assert (second.returncode, err) == (143, "")
        assert first.poll() is None
        assert [t.state.is_finished() for t in trials_of(folder_of(tmp_path))].count(True) < 3
        _, err = first.communicate()
    assert (first.returncode, err) == (0, "")
    folder = folder_of(tmp_path)
    assert [(t.number, t.state) for t in trials_of(folder)] == [(n, TrialState.COMPLETE) for n in range(3)]
    assert len({t.user_attrs["worker"] for t in trials_of(folder)}) == 1, "the first has them all"
    for number in range(3):
        steps, _ = recorded(folder.trial(number))["val/loss"]
        assert steps == [*range(1, 61)]


def test_two_controllers_at_the_same_instant_share_one_study(tmp_path):
    long = ("trainer.epochs=80", "hydra/sweeper/pruner=none")  # one has not done it all before the other has begun
    search = ("optimizer=sgd,adam", "hydra.sweeper.n_trials=8")
    quick_side_by_side(tmp_path, "-m", "experiment=debug", *long, *search, NAMED)
    trials = trials_of(folder_of(tmp_path))
    assert [t.number for t in trials] == list(range(8))
    assert all(t.state.is_finished() for t in trials)
    assert len({t.user_attrs["worker"] for t in trials}) == 2
    runs = mlflow_runs(tmp_path)
    assert sorted(int(r.data.tags["trial"]) for r in runs if "trial" in r.data.tags) == list(range(8))
    assert len(runs) == 9


def test_two_machines_that_keep_a_record_of_one_study_send_each_point_once(tmp_path):
    command = (
        *("-m", "experiment=debug", NAMED, "trainer.epochs=8", "hydra/sweeper/pruner=none"),
        *(f"hydra.sweeper.storage=sqlite:///{tmp_path}/optuna.db", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"),
    )
    shutil.copy(empty_store(), tmp_path / "mlflow.db")
    machines = [tmp_path / "a", tmp_path / "b"]
    for cwd in machines:
        cwd.mkdir()
    assert quick(machines[0], *command, "hydra.sweeper.n_trials=2").returncode == 0
    for process in [quick_start(cwd, *command, "hydra.sweeper.n_trials=6") for cwd in machines]:
        _, err = process.communicate()
        assert process.returncode == 0, err
    for cwd in machines:
        assert folder_of(cwd).run.journal.exists()
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (parent,) = [r for r in runs if r.data.tags.get("kind") == "study"]
    assert len(runs) == 7, [(r.info.run_name, r.info.status, r.data.tags.get("sweep.uid")) for r in runs]
    trials = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/optuna.db").trials
    values = [t.value for t in trials if t.value is not None]
    for name, expected in {"value": values, "best_value": [min(values[: i + 1]) for i in range(6)]}.items():
        points = sorted(client.get_metric_history(parent.info.run_id, name), key=lambda p: p.step)
        assert [(p.step, p.value) for p in points] == list(enumerate(expected))


def test_workers_run_on_submitit_too(tmp_path):
    done = run(
        tmp_path,
        "-m",
        *SMALL,
        "hydra/launcher=submitit_local",
        "hydra.sweeper.n_jobs=2",
        NAMED,
        "hydra.sweeper.n_trials=4",
    )
    assert done.returncode == 0, done.stderr
    trials = trials_of(folder_of(tmp_path))
    assert [t.state.is_finished() for t in trials] == [True] * 4


_TELLTALE = """
import os
from pathlib import Path
import torch
from torch import nn


class Telltale(nn.Linear):
    def forward(self, x):
        Path(f"seen-{os.getpid()}").write_text(f"{os.environ['CUDA_VISIBLE_DEVICES']} {torch.get_num_threads()}")
        return super().forward(x)
"""


def test_workers_side_by_side_have_a_gpu_each_and_share_the_cores(tmp_path):
    (tmp_path / "telltale.py").write_text(_TELLTALE)
    model = ("model._target_=telltale.Telltale", "~model.widths", "~model.activation", "~model.dropout")
    done = run(
        tmp_path,
        *("-m", *SMALL, *model, "trainer.epochs=20", "trainer.threads=null", NAMED, "hydra.sweeper.n_trials=6"),
        *("hydra.sweeper.n_jobs=2", "hydra/sweeper/pruner=none"),
        PYTHONPATH=str(tmp_path),
        SWEEP_TARGETS="telltale.*",
        CUDA_VISIBLE_DEVICES="3,5",
    )
    assert done.returncode == 0, done.stderr
    seen = [path.read_text().split() for path in tmp_path.glob("**/seen-*")]
    seen.remove(next(one for one in seen if one[0] == "3,5"))  # the command itself loads the best model at the end
    assert sorted(device for device, _ in seen) == ["3", "5"]
    assert all(int(n_threads) <= max(1, len(os.sched_getaffinity(0)) // 2) for _, n_threads in seen)


def test_a_launcher_that_cannot_start_workers_is_told_in_one_line(tmp_path):
    done = quick(tmp_path, "-m", *SMALL, "hydra/launcher=submitit_slurm", PATH=str(tmp_path))  # without Slurm in it
    assert error_line(done).startswith("error: hydra/launcher: cannot start workers: ")
    assert done.returncode == 2


def test_several_objectives_end_in_a_pareto_front(tmp_path):
    done = quick(
        make_store(tmp_path),
        *("-m", "experiment=debug", "hydra.sweeper.objective=[val/loss,model/n_weights]", "model.widths=[2],[4],[8]"),
        *("hydra/sweeper/sampler=nsgaii", "hydra.sweeper.n_trials=6", NAMED),
    )
    assert done.returncode == 0, done.stderr
    study = study_of(folder_of(tmp_path))
    weights = {"[2]": 7, "[4]": 13, "[8]": 25}
    assert all(t.values[1] == weights[t.params["model.widths"]] for t in study.get_trials())
    solutions = OmegaConf.load(folder_of(tmp_path).results).solutions
    assert [list(s["values"]) for s in solutions] == [t.values for t in study.best_trials]
    assert re.search(rf"Pareto front +{len(study.best_trials)} trials", done.stdout)


def test_the_objective_may_be_another_metric_to_maximise(tmp_path):
    done = quick(
        tmp_path,
        *("-m", *SMALL, "data=digits", "split.max_samples=200", "hydra.sweeper.objective=val/accuracy"),
        *("hydra.sweeper.n_trials=2", NAMED),
    )
    assert done.returncode == 0, done.stderr
    study = study_of(folder_of(tmp_path))
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    for trial in study.get_trials():
        assert trial.value == max(recorded(folder_of(tmp_path).trial(trial.number))["val/accuracy"][1])


def test_each_configuration_is_trained_on_several_seeds_and_counts_by_their_mean(tmp_path):
    done = quick(
        make_store(tmp_path),
        "-m",
        "experiment=debug",
        "hydra.sweeper.seeds=3",
        "hydra.sweeper.n_trials=2",
        NAMED,
        "hydra/sweeper/pruner=none",
    )
    assert done.returncode == 0, done.stderr
    folder = folder_of(tmp_path)
    for trial in trials_of(folder):
        best = [min(recorded(folder.trial(trial.number, i))["val/loss"][1]) for i in range(3)]
        assert len(set(best)) == 3
        assert trial.value == pytest.approx(sum(best) / 3, rel=1e-12)
        curves = [recorded(folder.trial(trial.number, i))["val/loss"][1] for i in range(3)]
        means = {e: sum(min(curve[:e]) for curve in curves) / 3 for e in (1, 2)}
        assert trial.intermediate_values == pytest.approx(means)  # a step is an epoch of all seeds
    children = [r for r in mlflow_runs(tmp_path) if "trial" in r.data.tags]
    assert sorted((r.data.tags["trial"], r.data.params["seed"]) for r in children) == [
        (trial, seed) for trial in "01" for seed in "012"
    ]


def test_random_search_of_a_small_space_tries_nothing_twice(tmp_path):
    space = ("optimizer=sgd,adam", "scheduler=constant", "optimizer.lr=1e-3,1e-2", "trainer.batch_size=8,16")
    done = quick(tmp_path, "-m", *SMALL, *space, "hydra/sweeper/sampler=random", NAMED)
    assert done.returncode == 0, done.stderr
    params = tried(folder_of(tmp_path))
    assert len({tuple(p.items()) for p in params}) == len(params) == 8
    assert params[0] == {"optimizer": "adam", "optimizer.lr": 1e-3, "trainer.batch_size": 16}  # the defaults


def test_known_configurations_are_tried_first(tmp_path):
    known = "hydra.sweeper.enqueue=[{optimizer: sgd, scheduler.max_lr: 0.2}, {trainer.batch_size: 8}]"
    done = quick(tmp_path, "-m", *SMALL, "optimizer=sgd,adam", known, NAMED, "hydra.sweeper.n_trials=3")
    assert done.returncode == 0, done.stderr
    defaults, first, second = tried(folder_of(tmp_path))
    assert defaults["scheduler.max_lr[adam]"] == 1e-2
    assert (first["optimizer"], first["scheduler.max_lr[sgd]"]) == ("sgd", 0.2)
    assert (second["optimizer"], second["trainer.batch_size"]) == ("adam", 8)


@pytest.mark.parametrize("sampler", ["cmaes", "gp", "qmc", "nsgaii"])
@pytest.mark.parametrize("pruner", ["hyperband"])
def test_every_sampler_of_the_stock_sweeper_works(sampler, pruner, tmp_path):
    done = quick(
        tmp_path,
        "-m",
        *SMALL,
        f"hydra/sweeper/sampler={sampler}",
        f"hydra/sweeper/pruner={pruner}",
        NAMED,
        "hydra.sweeper.n_trials=4",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len({tuple(p.items()) for p in tried(folder_of(tmp_path))}) == 4


HURRIED = """
import time
from torch import nn

now, n_calls = time.time, 0


class Hurried(nn.Linear):
    \"\"\"A day goes by while it trains.\"\"\"

    def forward(self, x):
        global n_calls
        n_calls += 1
        if n_calls == 50:
            time.time = lambda: now() + 24 * 3600
        return super().forward(x)
"""


@pytest.mark.parametrize("workers", ["hydra.sweeper.seeds=2", "hydra.sweeper.pack=4"])
def test_at_the_timeout_trials_stop_and_go_on_with_the_same_command(workers, tmp_path):
    (tmp_path / "hurried.py").write_text(HURRIED)
    study = (
        *("-m", "experiment=debug", "tracking=off", "trainer.epochs=1000", "trainer.checkpoint_interval_s=1000"),
        *("model._target_=hurried.Hurried", "~model.widths", "~model.activation", "~model.dropout"),
        *(NAMED, workers, "hydra.sweeper.timeout=36000"),
    )
    reached = []
    for _ in range(2):
        done = quick(tmp_path, *study, PYTHONPATH=str(tmp_path), SWEEP_TARGETS="hurried.*")
        assert (done.returncode, done.stderr) == (0, "")
        assert "run the same command again to resume it" in done.stdout
        trials = trials_of(folder_of(tmp_path))
        assert {t.state for t in trials} == {TrialState.WAITING}
        runs = folder_of(tmp_path).runs()
        assert len(runs) in (2, 4)
        states = [checkpoint.load(run.checkpoint) for run in runs]
        assert [state["epoch"] for state in states] == [len(recorded(run)["val/loss"][0]) for run in runs]
        assert all(state["losses"] == [] for state in states), "at the end of an epoch"
        reached.append(sum(state["epoch"] for state in states))
    assert 0 < reached[0] < reached[1] < 1000


def test_a_dry_run_shows_the_space_and_stores_nothing(tmp_path):
    done = quick(tmp_path, "-m", "experiment=debug", "optimizer=sgd,adam", "hydra.sweeper.dry_run=true", torch=False)
    assert done.returncode == 0, done.stderr
    assert "scheduler.max_lr[sgd]" in done.stdout
    assert "0.03 to 1, log" in done.stdout
    assert len(re.findall(r"^  optimizer=", done.stdout, re.MULTILINE)) == 5
    assert "32 trials x 2 epochs on 1 worker" in done.stdout
    assert list(tmp_path.iterdir()) == []


BAD = {
    "unknown sampler": (["hydra/sweeper/sampler=foo"], "hydra/sweeper/sampler", "tpe"),
    "unknown pruner": (["hydra/sweeper/pruner=foo"], "hydra/sweeper/pruner", "hyperband"),
    "unknown launcher": (["hydra/launcher=foo"], "hydra/launcher", "joblib"),
    "inverted range": (["scheduler.max_lr=interval(1,0.1)"], "scheduler.max_lr", "interval(1,0.1)"),
    "empty range": (["trainer.batch_size=range(5,5)"], "trainer.batch_size", "at least one"),
    "mixed types": (["trainer.batch_size=16,many"], "trainer.batch_size", "numbers and texts"),
    "grid over a range": (["hydra/sweeper/sampler=grid"], "scheduler.base_lr", "not a grid"),
    "no trials": (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials", ">= 1"),
    "no workers": (["hydra.sweeper.n_jobs=0"], "hydra.sweeper.n_jobs", ">= 1"),
    "silent storage": (
        ["hydra.sweeper.storage=postgresql+psycopg://u:secret@127.0.0.1:1/d"],
        "hydra.sweeper.storage",
        "127.0.0.1",
    ),
    "unknown storage": (["hydra.sweeper.storage=foo://x"], "hydra.sweeper.storage", "foo://x"),
    "unknown objective": (["hydra.sweeper.objective=val/los"], "hydra.sweeper.objective", "val/loss"),
    "directions": (["hydra.sweeper.direction=[minimize,maximize]"], "hydra.sweeper.direction", "one for each"),
    "enqueued elsewhere": (["hydra.sweeper.enqueue=[{scheduler.max_lr: 5}]"], "hydra.sweeper.enqueue", "outside"),
    "enqueued option": (
        ["optimizer=sgd,adam", "hydra.sweeper.enqueue=[{optimizer: rmsprop}]"],
        "hydra.sweeper.enqueue",
        "sgd, adam",
    ),
    "enqueued in a grid": (
        ["hydra/sweeper/sampler=grid", "hydra.sweeper.enqueue=[{trainer.batch_size: 16}]"],
        "hydra.sweeper.enqueue",
        "grid",
    ),
    "objective of other data": (["hydra.sweeper.objective=val/accuracy"], "hydra.sweeper.objective", "val/r2"),
    "objective twice": (["hydra.sweeper.objective=[val/loss,val/loss]"], "hydra.sweeper.objective", "twice"),
    "sampler of one objective": (
        ["hydra/sweeper/sampler=cmaes", "hydra.sweeper.objective=[val/loss,time/train_s]"],
        "hydra/sweeper/sampler",
        "cannot search this",
    ),
    "sampler's key": (
        ["hydra/sweeper/sampler=qmc", "+hydra.sweeper.sampler.foo=1"],
        "hydra.sweeper.sampler.foo",
        "QMCSampler",
    ),
    "pruner that fails": (
        ["hydra/sweeper/pruner=hyperband", "hydra.sweeper.pruner.reduction_factor=0"],
        "hydra.sweeper.pruner",
        "cannot prune",
    ),
    "option twice": (["optimizer=sgd,sgd"], "optimizer", "twice"),
    "no option": (["optimizer=glob(x*)"], "optimizer", "no option"),
    "glob of values": (["trainer.batch_size=glob(*)"], "trainer.batch_size", "list its values"),
    "no trial's setting": (["output_dir=a,b"], "output_dir", "one value"),
    "data that are missing": (["data=table", "data.path=no.csv", "data.target=y"], "data.path", "no.csv"),
    "folder that cannot be": (["output_dir=/dev/null/x"], "output_dir", "another"),
    "run to resume": (["resume=outputs/runs/x"], "resume", "single run"),
    "another study": (["from_study=x"], "from_study", "single run"),
    "seed of all replicates": (["hydra.sweeper.seeds=2", "trainer.seed=5"], "trainer.seed", "set seed"),
    "unknown key": (["trainer.batch_sise=1,2"], "trainer.batch_sise", "batch_size"),
    "value that does not fit": (["trainer.epochs=1,0"], "trainer.epochs", ">= 1"),
    "name that is no folder": (["hydra.sweeper.study_name=a/b"], "hydra.sweeper.study_name", "folder"),
    "impossible condition": (["+where.x='scheduler.max_lr < 0'"], "where.x", "change it"),
}


WHOLE_PROCESSES = ("silent storage", "option twice", "value that does not fit")  # their imports included


@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_is_one_line_that_names_the_key_and_nothing_is_stored(mistake, tmp_path):
    overrides, key, hint = BAD[mistake]
    command = ("-m", *SMALL, *overrides)
    done = run(tmp_path, *command) if mistake in WHOLE_PROCESSES else quick(tmp_path, *command, torch=False)
    line = error_line(done)
    assert line.startswith(f"error: {key}: ")
    assert hint in line
    assert "secret" not in line
    assert done.returncode == 2
    assert not list(tmp_path.rglob("journal.jsonl"))
    assert not list(tmp_path.rglob("*.db"))


def test_an_unknown_study_is_told_with_those_there_are(searched, tmp_path):
    done = quick(tmp_path, f"output_dir={searched.cwd}/outputs", "from_study=foo")
    assert error_line(done).startswith("error: from_study: 'foo' is not below ")
    assert searched.folder.path.name in done.stderr
    assert done.returncode == 2


@pytest.fixture(scope="module")
def some_have(tmp_path_factory) -> Path:
    """A grid over two schedules: only one of them has a gamma."""
    cwd = tmp_path_factory.mktemp("some_have")
    done = quick(
        cwd,
        *("-m", *SMALL, NAMED, "hydra/sweeper/sampler=grid", "trainer.batch_size=16", r"experiment_name=\${seed}"),
        *("scheduler=cyclic_exp_range,cyclic", "scheduler.gamma=0.9,0.95", "+optimizer.maximize=false"),
        *("scheduler.base_lr=1e-4", "+optimizer.foreach=false,true", "optimizer.fused=false", "scheduler.max_lr=0.01"),
    )
    assert done.returncode == 0, done.stderr
    return cwd


def test_every_trial_can_be_trained_again_by_what_it_recorded(some_have):
    trials = trials_of(folder_of(some_have))
    assert len(trials) == 2 * 2 + 2  # the schedule without a gamma is tried with none
    for trial in trials:
        run = folder_of(some_have).trial(trial.number)
        assert compose(from_yaml(run.overrides.read_text())).composed == from_yaml(run.config.read_text())["composed"]


def test_the_best_of_options_that_lack_a_key_trains_again(some_have):
    folder, study = folder_of(some_have), study_of(folder_of(some_have))
    assert study.best_params["scheduler"] == "cyclic"
    params = from_yaml(folder.results.read_text())["best_params"]
    assert params == {"scheduler": "cyclic", "+optimizer.foreach": study.best_params["optimizer.foreach"]}
    again = best_config(str(some_have / "outputs"), "s", [])
    assert again.composed == from_yaml(folder.trial(study.best_trial.number).config.read_text())["composed"]
    assert again.experiment_name == "${seed}"


def test_no_more_workers_start_than_there_are_trials_left(tmp_path):
    done = quick(tmp_path, "-m", *SMALL, NAMED, "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=3")
    assert done.returncode == 0, done.stderr
    assert len(list(folder_of(tmp_path).workers.glob("*.lock"))) == 1


def test_quoted_options_are_searched_and_the_printed_command_trains_the_best_again(tmp_path):
    cwd = tmp_path / "it's $a, ~b"
    cwd.mkdir()
    name, outputs = "-a,b=c@d", "output_dir='o #1'"
    done = quick(
        cwd,
        *("-m", *SMALL, outputs, 'optimizer="sgd","adam"', "scheduler=constant", "trainer.batch_size=16"),
        *(f"hydra.sweeper.study_name='{name}'", "hydra.sweeper.n_trials=2"),
    )
    assert done.returncode == 0, done.stderr
    (command,) = re.findall("^Train it again:  (.*)$", done.stdout, re.MULTILINE)
    again = quick(cwd, *shlex.split(command)[3:])
    assert again.returncode == 0, again.stderr
    (command,) = re.findall("^See it as page:  (.*)$", done.stdout, re.MULTILINE)
    assert shlex.split(command)[-1] == name


def test_a_trial_that_was_once_trained_by_itself_does_not_stop_its_study(tmp_path):
    """As an earlier version advised when the disk was full: `resume=` began the record of a run without a study."""
    command = ("-m", *SMALL, NAMED, "hydra/sweeper/pruner=none")
    assert quick(tmp_path, *command, "hydra.sweeper.n_trials=1").returncode == 0
    path = folder_of(tmp_path).trial(0).journal
    records = [record for record, _ in journal.read(path)]
    path.unlink()
    with journal.Journal(path) as alone:
        for record in records:
            fields = {name: value for name, value in record.items() if name not in ("kind", "time")}
            alone.event(record["kind"], **(fields | {"parent": None} if record["kind"] == "start" else fields))
    done = quick(tmp_path, *command, "hydra.sweeper.n_trials=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert [t.state for t in trials_of(folder_of(tmp_path))] == [TrialState.COMPLETE, TrialState.COMPLETE]
