"""sweep/trial/launch.py and rank.py: a training function in two processes, on gloo."""

import errno
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import functions
import psutil
import pytest
import torch
from processes import environment
from waiting import wait_until
from zygote import Zygote

from sweep import ConfigError, compose, run_study
from sweep.config.schema import validate
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.tracking.run_recorder import locked
from sweep.training.runtime import reproducible, seed_generators
from sweep.trial.recorded import RecordedTrial
from sweep.trial.training import make_training
from sweep.utils.errors import TRACEBACK_HINT, FunctionFailed, Interrupted, Pruned
from sweep.utils.signals import StopRequest

pytestmark = [pytest.mark.process, pytest.mark.targets("functions.*")]

BASE = ("trainer=function", "trainer.call=functions.ranked", "trainer.epochs=3", "trainer.device=cpu", "tracking=off")
TWO = (*BASE, "trainer.launch=torchrun", "trainer.n_processes=2", "trainer.checkpoint_interval_s=0")


def trained(folder: Path, fails: str = "not", prune_at: int = 0, stop_at: int = 0) -> dict[str, float]:
    """Trains, or resumes what was stopped before in that folder, and returns what the function returns."""
    run, stop = RunFolder(folder), StopRequest()
    config = validate(compose([*TWO, f"+fails={fails}"]))

    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        if epoch == prune_at:
            raise Pruned(epoch)
        if epoch == stop_at:
            stop.signum = signal.SIGTERM

    run.create()
    with (
        locked(run),
        RecordedTrial(run, config, output_dir=folder.parent, store=None, report=report, stop=stop) as trial,
    ):
        return make_training(config)(trial)


def noted(folder: Path) -> list[str]:
    """How the training of each rank ended, if not with a result."""
    return sorted(file.name for file in folder.glob("rank-?.[A-Z]*"))


def living(folder: Path) -> list[str]:
    """The ranks that still live, and the process that one of them has started."""
    pids = {file.stem: int(file.read_text()) for file in folder.glob("*.pid")}
    assert {*pids} == {"rank-0", "rank-1", "child"}
    return [name for name, pid in pids.items() if is_alive(pid)]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def curve(folder: Path) -> tuple[list[int], list[float]]:
    return journal.curves(RunFolder(folder).journal)["val/loss"].tolist()


def test_a_stopped_trial_resumes_in_all_ranks_as_if_it_had_not_been(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trained(tmp_path / "run", stop_at=1)
    assert noted(tmp_path / "run") == ["rank-0.Interrupted", "rank-1.Interrupted"]
    returned = trained(tmp_path / "run")
    with reproducible(torch.device("cpu")):
        seed_generators(0, "train")
        totals = (2 * torch.rand(3) + 1).cumsum(0)  # the same draws in both ranks, and the number of rank 1
    steps, values = curve(tmp_path / "run")
    assert (steps, values) == ([1, 2, 3], pytest.approx(totals.tolist()))
    assert returned == {"test/loss": values[-1]}


def test_all_ranks_hear_of_pruning(tmp_path: Path) -> None:
    with pytest.raises(Pruned):
        trained(tmp_path / "pruned", prune_at=2)
    assert noted(tmp_path / "pruned") == ["rank-0.Pruned", "rank-1.Pruned"]
    assert curve(tmp_path / "pruned")[0] == [1, 2]


def test_the_error_of_a_rank_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FunctionFailed) as raised:
        trained(tmp_path / "run", "skips")
    message = (
        "functions.ranked: rank 1: reported epoch 3 where rank 0 reported epoch 2; report the same epochs in every rank"
    )
    assert str(raised.value) == message + TRACEBACK_HINT


def test_a_rank_that_hangs_in_c_code_ends_with_its_trial(tmp_path: Path) -> None:
    """Rank 0 has the trial keep a missing file. What the trial raises is as for a function in one process."""
    with pytest.raises(FunctionFailed, match=r"^functions.ranked: FileNotFoundError: .*missing"):
        trained(tmp_path / "run", "hangs")
    assert living(tmp_path / "run") == []


def test_a_full_disk_stays_one_and_only_rank_0_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ranks find sweep where the worker did, and the worker even if the folder of temporary files has a long name."""
    other, long = tmp_path / "other" / "sweep", tmp_path / ("x" * 100)
    for folder in (other, long):
        folder.mkdir(parents=True)
    (other / "__init__.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(other.parent))
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = RunFolder(tmp_path / "run")
    folder.create()
    with RecordedTrial(folder, validate(compose([*TWO])), output_dir=tmp_path, store=None) as begun:
        begun.describe()
    caplog.set_level("INFO")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        trained(folder.path, "full")
    assert (folder.path / "given").exists()
    curves = {name: curve.tolist() for name, curve in journal.curves(folder.journal).items()}
    assert curves["val/loss"][1][1:] == [1.0, 5.0]
    assert curves["late"] == ([2], [4.0])
    assert len([line for line in caplog.messages if line.endswith("it left no checkpoint")]) == 1


def test_a_launcher_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.distributed.launcher.api", None)
    with pytest.raises(FunctionFailed, match=r"^functions.ranked: cannot be launched: import of torch\.") as raised:
        trained(tmp_path / "run")
    assert "\n" not in str(raised.value)


def test_a_dead_rank_fails_its_trial_and_the_study_retries_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = [*TWO, "+fails=killed", '+search.fails="choice(killed)"']
    study = run_study(command, study_name="s", n_trials=1, sampler="grid", pruner="none", max_failure_rate=1)
    assert study.results[0].problem == "functions.ranked: rank 1 was killed by SIGKILL"
    study = study.resume(retry_failed=True)
    assert study.results[0].state == "complete"
    steps, _ = curve(study.results[0].folder)
    assert steps == [1, 2, 3]


def test_no_rank_outlives_its_worker(tmp_path: Path) -> None:
    command = (*TWO, "+fails=hangs", f"output_dir={tmp_path}")
    environ = environment(SWEEP_TARGETS="functions.*", PYTHONPATH=str(Path(functions.__file__).parent))
    zygote = Zygote(environment())
    with zygote.start(tmp_path, command, environ) as process:
        wait_until(lambda: [*tmp_path.glob("runs/*/here")], process)
        process.send_signal(signal.SIGKILL)
    (folder,) = tmp_path.glob("runs/*")
    wait_until(lambda: not living(folder))
    zygote.close()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.launch=torchrun"], "trainer.n_processes: is needed with trainer.launch=torchrun"),
        (["trainer.n_processes=2"], "trainer.n_processes: is for trainer.launch=torchrun, which is not set"),
        (["trainer.launch=torchrun", "trainer.n_processes=0"], "trainer.n_processes: must be >= 1, got 0"),
        (["trainer.launch=mpi", "trainer.n_processes=2"], "trainer.launch: 'mpi' is unknown; choose one of torchrun"),
        (["trainer=default", "trainer.launch=torchrun"], "trainer.launch: is for a training function"),
    ],
)
def test_what_cannot_be_launched_names_the_key(overrides: list[str], message: str) -> None:
    base = BASE[:2] if "trainer=default" not in overrides else ()
    with pytest.raises(ConfigError) as raised:
        validate(compose([*base, *overrides]))
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:1", "trainer.device: 'cuda:1' cannot be used by trainer.launch"),
        (
            "cuda",
            "trainer.n_processes: is 2, and each process needs a GPU, but there is 1 here; lower it, or set "
            "trainer.device=cpu, or hydra.sweeper.n_jobs=1, since each of several workers gets one GPU",
        ),
    ],
)
def test_a_device_for_each_rank_is_needed(
    device: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = validate(compose([*TWO, "+fails=not", f"trainer.device={device}"]))
    run = RunFolder(tmp_path / "run")
    with (
        RecordedTrial(run, config, output_dir=tmp_path, store=None) as trial,
        pytest.raises(ConfigError) as raised,
    ):
        make_training(config)(trial)
    assert str(raised.value).startswith(message)
    assert not os.path.exists(run.path)
