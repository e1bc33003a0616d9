"""The command line as a user meets it: whole processes, their output, their exit status, and what they leave."""

import fcntl
import functools
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from processes import (
    RUN,
    client,
    environment,
    error_line,
    make_store,
    mlflow_curve,
    mlflow_runs,
    n_mlflow_runs,
    only_run,
    quick,
    recorded,
    run,
    wait_for_helper,
)

from sweep.tracking import journal
from sweep.tracking.folders import RunFolder

pytestmark = pytest.mark.process  # commands, servers, a browser

DEBUG = "experiment=debug"  # 64 samples, 2 epochs of 3 updates
UNTRACKED = (DEBUG, "tracking=off")


class Finished(NamedTuple):
    cwd: Path
    process: "subprocess.CompletedProcess[str]"


@pytest.fixture(scope="module")
def tripwire(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH on which importing torch or mlflow ends the process."""
    folder = tmp_path_factory.mktemp("tripwire")
    for name in ("torch", "mlflow"):
        (folder / f"{name}.py").write_text(f"import os, sys\nsys.stderr.write('{name} is loaded')\nos._exit(99)\n")
    return str(folder)


# One run


@pytest.fixture(scope="module")
def debug_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    cwd = tmp_path_factory.mktemp("debug")
    done = run(cwd, DEBUG, "optimizer=adam")
    assert done.returncode == 0, done.stderr
    return Finished(cwd, done)


def test_a_run_ends_with_a_table_and_the_command_that_shows_it_in_mlflow(debug_run):
    lines = debug_run.process.stdout.splitlines()
    folder = only_run(debug_run.cwd)
    for label in (
        "best val/loss",
        "test/loss",
        "test/mse",
        "test/mae",
        "test/r2",
        "test/noise_ratio",
        "test/excess",
        "time",
    ):
        assert [line for line in lines if line.strip().startswith(label)], label
    assert "test MSE / sigma^2" in debug_run.process.stdout
    val = recorded(folder)["val/loss"][1]
    assert f"{min(val):.6g} (epoch {val.index(min(val)) + 1} of 2)" in debug_run.process.stdout
    assert lines[-2].split() == ["Run", "folder:", str(folder.path)]
    store = f"sqlite:///{debug_run.cwd}/outputs/mlflow.db"
    assert lines[-1].endswith(f"mlflow ui --backend-store-uri {store}")


def test_without_a_terminal_progress_is_plain_lines(debug_run):
    epochs = re.findall(
        r"^epoch (\d+)/2 +train [\d.]+ +val [\d.]+ +lr [\d.e-]+$", debug_run.process.stdout, re.MULTILINE
    )
    assert epochs == ["1", "2"]
    assert "\x1b" not in debug_run.process.stdout
    assert debug_run.process.stderr == ""


def test_a_run_writes_its_files_below_output_dir_and_nowhere_else(debug_run):
    folder = only_run(debug_run.cwd)
    names = {path.name for path in folder.path.iterdir()}
    assert names >= {"config.yaml", "overrides.yaml", "journal.jsonl", "best.pt", "checkpoint.pt", "curves.png"}
    assert folder.curves.read_bytes().startswith(b"\x89PNG")
    assert not [name for name in names if name.endswith(".tmp")]
    assert [path.name for path in debug_run.cwd.iterdir()] == ["outputs"]


def test_mlflow_has_the_run_with_its_name_params_tags_and_data(debug_run):
    (logged,) = mlflow_runs(debug_run.cwd)
    assert logged.info.status == "FINISHED"
    assert logged.info.run_name is not None
    assert logged.info.run_name.startswith("adam-cyclic-mlp-noisy_sine")
    assert client(debug_run.cwd).get_experiment(logged.info.experiment_id).name == "debug"
    params = logged.data.params
    assert params["trainer.epochs"] == "2"
    assert params["trainer.batch_size"] == "16"
    assert params["scheduler.max_lr"] == "0.01"
    assert params["split.max_samples"] == "64"
    assert params["seed"] == "0"
    assert "output_dir" not in params
    tags = logged.data.tags
    groups = {group: tags[group] for group in ("optimizer", "scheduler", "model", "data")}
    assert groups == {"optimizer": "adam", "scheduler": "cyclic", "model": "mlp", "data": "noisy_sine"}
    assert shlex.split(tags["command"]) == ["python", "-m", "sweep.run", DEBUG, "optimizer=adam"]
    assert {"python", "host", "os", "cpus", "version.torch", "version.mlflow", "version.sweep"} <= tags.keys()
    assert logged.inputs is not None
    assert [used.dataset.name for used in logged.inputs.dataset_inputs] == ["noisy_sine"]


def test_mlflow_has_the_curves_that_the_journal_has(debug_run):
    (logged,) = mlflow_runs(debug_run.cwd)
    curves = recorded(only_run(debug_run.cwd))
    assert curves.keys() >= {"train/loss", "val/loss", "val/mse", "lr", "step/loss", "step/lr"}
    for name, curve in curves.items():
        assert mlflow_curve(debug_run.cwd, logged.info.run_id, name) == curve
    assert curves["lr"][0] == [1, 2]  # step = epoch
    assert curves["step/lr"][0] == [1, 2, 3, 4, 5, 6]
    last = logged.data.metrics
    assert {"test/loss", "test/mse", "test/excess"} <= last.keys()
    assert min(curves["val/loss"][1]) in [value for name, value in last.items() if name.startswith("best")]


def test_mlflow_has_the_config_the_overrides_the_best_weights_and_the_picture(debug_run):
    (logged,) = mlflow_runs(debug_run.cwd)
    folder = only_run(debug_run.cwd)
    stored = {artifact.path for artifact in client(debug_run.cwd).list_artifacts(logged.info.run_id)}
    files = {"config.yaml", "overrides.yaml", "best.pt", "predictions.parquet", "curves.png"}
    assert stored == {*files, "model"}  # a tmp_path is in no repository
    copy = client(debug_run.cwd).download_artifacts(logged.info.run_id, "best.pt", str(debug_run.cwd / "outputs"))
    assert Path(copy).read_bytes() == folder.best.read_bytes()


def git(cwd: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def run_in_a_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an option of the user's own, in a repository with a change that is not committed."""
    cwd = tmp_path_factory.mktemp("repository")
    option = cwd / "my conf" / "optimizer" / "mine.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("_target_: torch.optim.SGD\nlr: 0.5\n")
    git(cwd, "init")
    git(cwd, "add", ".")
    git(cwd, "commit", "-m", "options")
    option.write_text("_target_: torch.optim.SGD\nlr: 0.125\n")
    done = quick(cwd, "--config-dir", "my conf", "optimizer=mine", *UNTRACKED)
    assert done.returncode == 0, done.stderr
    return cwd


def start_tags(cwd: Path) -> dict[str, str]:
    start = journal.first(only_run(cwd).journal, "start")
    assert start is not None
    return start["tags"]


def test_a_run_in_a_repository_says_its_commit_and_keeps_what_is_not_committed(run_in_a_repository):
    tags = start_tags(run_in_a_repository)
    assert tags["git.commit"] == git(run_in_a_repository, "rev-parse", "HEAD")
    assert tags["git.dirty"] == "true"
    assert "+lr: 0.125" in only_run(run_in_a_repository).diff.read_text()


def test_the_recorded_command_finds_a_users_options_from_anywhere(run_in_a_repository, tmp_path, tripwire):
    program, *arguments = shlex.split(start_tags(run_in_a_repository)["command"])
    assert program == "python"
    again = run(tmp_path, *arguments, "--cfg", "job", command=(sys.executable,), PYTHONPATH=tripwire)
    assert "lr: 0.125" in again.stdout, again.stderr


# Many runs


@pytest.fixture(scope="module")
def four_runs(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    cwd = make_store(tmp_path_factory.mktemp("multirun"))
    done = quick(cwd, "-m", "hydra/sweeper=basic", DEBUG, "optimizer=sgd,adam", "seed=0,1")
    assert done.returncode == 0, done.stderr
    return Finished(cwd, done)


def test_a_multirun_makes_one_mlflow_run_for_each_combination(four_runs):
    runs = mlflow_runs(four_runs.cwd)
    assert {(r.data.tags["optimizer"], r.data.params["seed"], r.info.status) for r in runs} == {
        (optimizer, seed, "FINISHED") for optimizer in ("sgd", "adam") for seed in ("0", "1")
    }
    assert len({r.info.run_name for r in runs}) == len(runs) == 4
    folders = [path.parent for path in four_runs.cwd.glob("outputs/multirun/*/*/journal.jsonl")]
    assert sorted(folder.name for folder in folders) == ["0", "1", "2", "3"]
    assert [path.name for path in four_runs.cwd.iterdir()] == ["outputs"]


def test_a_trial_of_a_multirun_is_bitwise_what_it_is_alone(four_runs, debug_run):
    (sweep_folder,) = (four_runs.cwd / "outputs" / "multirun").iterdir()
    together = RunFolder(sweep_folder / "2")  # after two others in the same process: optimizer=adam seed=0
    assert recorded(together) == recorded(only_run(debug_run.cwd))


def test_the_optuna_sweeper_gets_the_objective_and_writes_the_best(tmp_path):
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1")
    done = quick(tmp_path, "-m", *UNTRACKED, *search, "scheduler=constant", "optimizer.lr=tag(log,interval(1e-4,1e-1))")
    assert done.returncode == 0, done.stderr
    (results,) = tmp_path.glob("outputs/multirun/*/optimization_results.yaml")
    best = {}
    for folder in results.parent.glob("[0-9]"):
        best[min(recorded(RunFolder(folder))["val/loss"][1])] = recorded(RunFolder(folder))["lr"][1][0]
    assert len(best) == 3
    text = results.read_text()
    found = re.search(r"best_value: (\S+)", text), re.search(r"optimizer.lr: (\S+)", text)
    assert [float(match[1]) for match in found if match] == [min(best), best[min(best)]]


# Bad input


CONFIG_MISTAKES = {
    "unknown group option": (["optimizer=adamm"], "optimizer", "adam, adamw"),
    "no group option": (["experiment=null"], "experiment", "debug, digits_resnet"),
    "unknown group": (["optimiser=adam"], "optimiser", "optimizer"),
    "unknown key": (["trainer.epoch=3"], "trainer.epoch", "epochs"),
    "unknown key, added": (["+trainer.epoch=3"], "trainer.epoch", "epochs"),
    "unknown root key, added": (["+optimiser=adam"], "optimiser", "optimizer"),
    "unknown key of a component": (["optimizer.bettas=[0.9,0.99]"], "optimizer.bettas", "betas"),
    "a list without -m": (["optimizer=sgd,adam"], "optimizer", "add -m"),
    "a range without a sampler": (
        ["-m", "hydra/sweeper=basic", "optimizer.lr=interval(1e-3,1)"],
        "hydra/sweeper",
        "hydra/sweeper=study",
    ),
    "unreadable override": (["optimizer.lr=[1"], "optimizer.lr", "optimizer.lr=[1"),
    "wrong type": (["trainer.epochs=many"], "trainer.epochs", "'many'"),
    "wrong type of a learning rate": (["optimizer.lr=high"], "optimizer.lr", "number"),
    "lr = 0": (["optimizer.lr=0"], "optimizer.lr", "> 0"),
    "lr < 0": (["optimizer.lr=-1e-3"], "optimizer.lr", "> 0"),
    "lr = nan": (["optimizer.lr=nan"], "optimizer.lr", "finite"),
    "batch_size < 1": (["trainer.batch_size=0"], "trainer.batch_size", ">= 1"),
    "epochs < 1": (["trainer.epochs=0"], "trainer.epochs", ">= 1"),
    "base_lr = max_lr": (["scheduler.base_lr=0.01"], "scheduler.base_lr", "scheduler.max_lr"),
    "base_lr > max_lr": (["scheduler.max_lr=1e-5"], "scheduler.base_lr", "scheduler.max_lr"),
    "target outside the whitelist": (["model._target_=os.system"], "model._target_", "SWEEP_TARGETS"),
    "nested target": (["+model.act={_target_: os.getcwd}"], "model.act._target_", "SWEEP_TARGETS"),
    "unknown word": (["trainer.precision=float8"], "trainer.precision", "float32, bf16"),
    "no path of the table": (["data=table", "data.target=y"], "data.path", "path"),
    "empty output_dir": (["output_dir="], "output_dir", "empty"),
    "nothing to resume": (["resume=nowhere"], "resume", "nowhere"),
}


WHOLE_PROCESSES = ("unknown key", "wrong type of a learning rate", "nested target", "text in a cell")
without_torch = functools.partial(quick, torch=False)


@pytest.mark.parametrize("mistake", CONFIG_MISTAKES)
def test_a_mistake_in_the_config_is_one_line_before_torch_is_loaded(mistake, tmp_path, tripwire):
    overrides, key, hint = CONFIG_MISTAKES[mistake]
    begin = run if mistake in WHOLE_PROCESSES else without_torch
    done = begin(tmp_path, *overrides, PYTHONPATH=tripwire)
    line = error_line(done)
    assert line.startswith(f"error: {key}: ")
    assert hint in line
    assert done.returncode == 2
    assert n_mlflow_runs(tmp_path) == 0
    assert not (tmp_path / "nowhere").exists()
    assert list(tmp_path.glob("outputs/runs/*")) == []  # not even an empty folder


GOOD_ROWS = [f"{i},{i * i},{2 * i}" for i in range(40)]
TABLES = {
    "missing file": (None, "data.path", "table.csv"),
    "empty file": ("", "data.path", "empty"),
    "header only": ("a,b,y\n", "data.path", "no rows"),
    "no target column": ("a,b\n1,2\n3,4\n", "data.target", "a, b"),
    "text in a cell": ("a,b,y\n1,2,3\n4,five,6\n", "data.features", "line 3, column 'b' is 'five'"),
    "NaN in a cell": ("a,b,y\n1,2,3\n4,5,6\n7,nan,9\n", "data.features", "line 4, column 'b'"),
    "text in the target": ("a,b,y\n1,2,high\n4,5,6\n", "data.target", "line 2, column 'y' is 'high'"),
    "constant feature": ("a,b,y\n" + "".join(f"{i},7,{i}\n" for i in range(40)), "data.features", "column 'b'"),
    "too few samples": ("a,b,y\n1,2,3\n4,6,6\n9,8,9\n", "split", "3 samples"),
    "batch too large": ("a,b,y\n" + "\n".join(GOOD_ROWS), "trainer.batch_size", "28 samples"),
}


@pytest.mark.parametrize("fault", TABLES)
def test_a_fault_in_a_table_is_one_line_that_says_where(fault, tmp_path, tripwire):
    text, key, hint = TABLES[fault]
    if text is not None:
        (tmp_path / "table.csv").write_text(text)
    begin = run if fault in WHOLE_PROCESSES else without_torch
    table = ("data=table", "data.path=table.csv", "data.target=y")
    done = begin(tmp_path, *table, "trainer.batch_size=64", PYTHONPATH=tripwire)  # a default would be lowered
    line = error_line(done)
    assert line.startswith(f"error: {key}: ")
    assert hint in line
    assert done.returncode == 2
    assert n_mlflow_runs(tmp_path) == 0


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
def test_an_output_dir_that_cannot_be_written_is_one_line(place, tmp_path, tripwire):
    (tmp_path / "file").write_text("not a folder")
    done = without_torch(tmp_path, DEBUG, f"output_dir={place}", PYTHONPATH=tripwire)
    line = error_line(done)
    assert line.startswith("error: output_dir: ")
    assert place in line
    assert done.returncode == 2


def test_an_argument_that_the_target_does_not_take_is_one_line_and_no_mlflow_run(tmp_path):
    done = quick(make_store(tmp_path), DEBUG, "optimizer=sgd", "+optimizer.betas=[0.9,0.99]")
    line = error_line(done)
    assert line.startswith("error: optimizer.betas: ")
    assert "momentum" in line  # one of those it takes
    assert done.returncode == 2
    wait_for_helper(tmp_path)
    assert n_mlflow_runs(tmp_path) == 0


def test_a_traceback_is_shown_only_where_it_is_asked_for(tmp_path, tripwire):
    done = run(tmp_path, "optimizer.lr=0", HYDRA_FULL_ERROR="1", PYTHONPATH=tripwire)
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: optimizer.lr: ")
    assert done.returncode == 2


def test_a_mistake_in_one_trial_of_a_multirun_is_one_line_and_spares_the_others(tmp_path):
    done = quick(tmp_path, "-m", "hydra/sweeper=basic", *UNTRACKED, "scheduler=constant", "optimizer.lr=0,1e-3")
    assert error_line(done).startswith("error: optimizer.lr: ")
    assert done.returncode == 2
    (finished,) = tmp_path.glob("outputs/multirun/*/*/journal.jsonl")
    assert journal.status(finished) == "FINISHED"


# Divergence


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The learning rate grows a thousandfold every epoch."""
    cwd = make_store(tmp_path_factory.mktemp("diverged"))
    growing = ("optimizer=sgd", "optimizer.lr=1e-2", "scheduler=exponential", "scheduler.gamma=1000")
    return Finished(cwd, quick(cwd, DEBUG, *growing, "trainer.epochs=30"))


def test_divergence_ends_the_run_with_one_line_that_says_step_and_lr(diverged):
    line = error_line(diverged.process)
    found = re.fullmatch(r"error: diverged: .* at step (\d+) with lr (\S+); .*", line)
    assert found
    step, lr = int(found[1]), float(found[2])
    assert lr == pytest.approx(1e-2 * 1000 ** ((step - 1) // 3))  # 3 steps an epoch
    assert diverged.process.returncode == 1


def test_a_diverged_run_is_failed_and_tagged_in_mlflow_with_its_curves_so_far(diverged):
    (logged,) = mlflow_runs(diverged.cwd)
    assert logged.info.status == "FAILED"
    assert logged.data.tags["diverged"] == "true"
    curves = recorded(only_run(diverged.cwd))
    assert len(curves["val/loss"][0]) >= 1
    assert len(curves["step/loss"][0]) >= 3 * len(curves["val/loss"][0])
    for name, curve in curves.items():
        assert np.isfinite(curve[1]).all()
        assert mlflow_curve(diverged.cwd, logged.info.run_id, name) == curve
    assert np.isfinite(list(logged.data.metrics.values())).all()
    stored = {artifact.path for artifact in client(diverged.cwd).list_artifacts(logged.info.run_id)}
    assert {"config.yaml", "overrides.yaml", "curves.png"} <= stored


# A terminal


def test_in_a_terminal_a_live_line_shows_epoch_losses_lr_and_eta(tmp_path):
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 80, 0, 0))
    process = subprocess.Popen(
        [*RUN, *UNTRACKED],
        cwd=tmp_path,
        env=environment(TERM="xterm-256color"),
        stdin=inside,
        stdout=inside,
        stderr=inside,
    )
    os.close(inside)
    shown = _read_all(terminal)
    assert process.wait() == 0, shown
    assert "\x1b[2K" in shown  # lines are overwritten
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    live = [line for line in re.split(r"[\r\n]+", text) if line.startswith("epoch")]
    assert re.match(r"epoch +2/2 .* train \S+ +val \S+ +lr \S+ +ETA +\d:\d\d:\d\d", live[-1])
    assert max(map(len, live)) <= 80
    assert text.rstrip().splitlines()[-2].startswith("Run folder:")


def _read_all(terminal: int) -> str:
    shown = b""
    try:
        while data := os.read(terminal, 65536):
            shown += data
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(terminal)
    return shown.decode()


# A user's own package

MYPKG = """
import numpy as np
import torch
from torch import nn

import sweep


class Net(nn.Module):
    def __init__(self, in_features, out_features, hidden):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_features, hidden), nn.Tanh(), nn.Linear(hidden, out_features))

    def forward(self, x):
        return self.layers(x)


class Sign(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * p.grad.sign())


def ramp(optimizer, steps_per_epoch, epochs, low):
    n = steps_per_epoch * epochs
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - (1 - low) * step / n)


def plane(n):
    x = np.random.default_rng(0).normal(size=(n, 3))
    return sweep.Samples(name="plane", task="regression", x=x, y=x @ [1.0, 2.0, 3.0])
"""
MYCONF = {
    "model": "_target_: mypkg.Net\nhidden: 7\n",
    "optimizer": "_target_: mypkg.Sign\nlr: 1e-2\n",
    "scheduler": "_target_: mypkg.ramp\ninterval: step\nlow: 0.1\n",
    "data": "_target_: mypkg.plane\nn: 60\n",
}
MINE = ("--config-dir", "my conf", *(f"{group}=mine" for group in MYCONF), "tracking=off")


@pytest.fixture
def own_package(tmp_path: Path) -> Path:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "mypkg.py").write_text(MYPKG)
    for group, text in MYCONF.items():
        folder = tmp_path / "my conf" / group
        folder.mkdir(parents=True)
        (folder / "mine.yaml").write_text(text)
    return tmp_path


def _vouch_by_entry_point(lib: Path) -> None:
    """What `pip install` leaves of a package with `[project.entry-points."sweep.targets"]`."""
    info = lib / "mypkg-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mypkg\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sweep.targets]\nmypkg = mypkg\n")


def test_a_users_own_model_optimizer_scheduler_and_data_are_used(own_package):
    _vouch_by_entry_point(own_package / "lib")
    done = run(own_package, *MINE, "trainer.epochs=3", "trainer.batch_size=10", PYTHONPATH=str(own_package / "lib"))
    assert done.returncode == 0, done.stderr
    folder = only_run(own_package)
    start = journal.first(folder.journal, "start")
    assert start is not None
    assert start["name"].startswith("mine-mine-mine-mine")
    assert start["params"]["model.hidden"] == 7
    assert start["dataset"]["name"] == "plane"
    steps, lrs = recorded(folder)["step/lr"]
    n_steps = 3 * 5  # 42 samples to train on
    assert steps == list(range(1, n_steps + 1))
    np.testing.assert_allclose(lrs, [1e-2 * (1 - 0.9 * i / n_steps) for i in range(n_steps)])


def test_a_users_package_is_refused_unless_it_is_vouched_for(own_package, tripwire):
    done = run(own_package, *MINE, PYTHONPATH=f"{own_package / 'lib'}{os.pathsep}{tripwire}")
    line = error_line(done)
    assert re.match(r"error: (data|model|optimizer|scheduler)\._target_: 'mypkg\.", line)
    assert "SWEEP_TARGETS=mypkg.*" in line
    assert done.returncode == 2


def test_the_environment_vouches_for_a_package(own_package, tripwire):
    missing = ("data=table", "data.path=missing.csv", "data.target=y")  # the first mistake behind the targets
    done = run(own_package, *MINE, *missing, PYTHONPATH=tripwire, SWEEP_TARGETS="other.Net, mypkg.*")
    assert error_line(done).startswith("error: data.path: no file 'missing.csv'")


def test_a_config_cannot_vouch_for_its_own_targets(own_package, tripwire):
    lib = f"{own_package / 'lib'}{os.pathsep}{tripwire}"
    done = run(own_package, *MINE, "+hydra.job.env_set.SWEEP_TARGETS=mypkg.*", PYTHONPATH=lib)
    assert error_line(done).startswith("error: hydra.job.env_set.SWEEP_TARGETS: ")
    assert done.returncode == 2
