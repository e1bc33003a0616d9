"""Runs and studies on torch datasets, as commands: stopped, killed, with workers that die; and what each leaves."""

import os
import signal
from pathlib import Path

import psutil
import pytest
import torch
from processes import error_line, final_values, only_run, quick, recorded, start, wait_for_epochs
from waiting import wait_until

from sweep import run_study
from sweep.config.composition import compose
from sweep.config.schema import validate
from sweep.tracking.folders import RunFolder
from sweep.trial.range_test import range_test

pytestmark = pytest.mark.process

TESTS = Path(__file__).parents[1]
OPTION = "_target_: torch_datasets.curve\nn: 200\nnoise: 0.1\nkind: map\nfault: ''\ntest: true\n"
TRUSTED = "torch_datasets.*"
SMALL = ("model.widths=[8]", "model.dropout=0.2", "trainer.batch_size=16", "trainer.epochs=3", "tracking=off")
RUN = ("--config-dir", "own", "data=curve", *SMALL)  # 13 updates an epoch


@pytest.fixture(autouse=True)
def _own_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_option(tmp_path)
    monkeypatch.setenv("SWEEP_TARGETS", TRUSTED)


def write_option(folder: Path) -> None:
    (folder / "own" / "data").mkdir(parents=True, exist_ok=True)
    (folder / "own" / "data" / "curve.yaml").write_text(OPTION)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_option(folder)
    done = quick(folder, *RUN, PYTHONPATH=str(TESTS), SWEEP_TARGETS=TRUSTED)
    assert (done.returncode, done.stderr) == (0, "")
    return only_run(folder)


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes that load data for a run: forked from it, so they have its command line."""
    run = psutil.Process(pid)
    return [child for child in run.children() if child.cmdline() == run.cmdline()]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_run_killed_inside_an_epoch_and_resumed_is_bitwise_the_uninterrupted_one(
    n_workers: int, tmp_path: Path, uninterrupted: RunFolder
) -> None:
    often = ("trainer.checkpoint_interval_s=1e-6", f"data.fault=kill:{tmp_path}/seen")  # dies in the second epoch
    workers = () if n_workers == 0 else (f"loader.num_workers={n_workers}", "loader.prefetch_factor=1")
    done = quick(tmp_path, *RUN, *often, *workers, PYTHONPATH=str(TESTS), SWEEP_TARGETS=TRUSTED)
    assert done.returncode == -signal.SIGKILL
    folder = only_run(tmp_path)
    step = torch.load(folder.checkpoint, weights_only=True)["step"]
    assert 13 < step < 26
    done = quick(tmp_path, f"resume={folder.path}", PYTHONPATH=str(TESTS), SWEEP_TARGETS=TRUSTED)
    assert (done.returncode, done.stderr) == (0, "")
    assert recorded(folder) == recorded(uninterrupted)
    assert final_values(folder) == final_values(uninterrupted)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_no_worker(signum: signal.Signals, tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to the workers too, and a batch system SIGTERM."""
    more = ("trainer.epochs=100000", "loader.num_workers=2", "loader.persistent_workers=true", "data.n=2000")
    process = start(tmp_path, *RUN, *more, PYTHONPATH=str(TESTS), SWEEP_TARGETS=TRUSTED)
    with process:
        wait_for_epochs(tmp_path, 2, process)
        workers = workers_of(process.pid)
        assert len(workers) == 4  # of training and of validation
        if signum == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, signum)
        _, err = process.communicate()
    wait_until(lambda: not any(worker.is_running() for worker in workers))
    assert process.returncode == (-signum if signum == signal.SIGKILL else 128 + signum), err
    if signum != signal.SIGKILL:
        assert err == ""
        assert only_run(tmp_path).checkpoint.exists()


def test_a_dataset_that_raises_in_a_worker_is_one_line(tmp_path: Path) -> None:
    done = quick(
        tmp_path, *RUN, "data.fault=raise", "loader.num_workers=2", PYTHONPATH=str(TESTS), SWEEP_TARGETS=TRUSTED
    )
    assert done.returncode == 1
    line = error_line(done)
    assert line.startswith("error: training failed at step ")
    assert ": Datasets.train[198]: ValueError: no such point in two lines (" in line


def test_trials_of_a_packed_study_train_sequentially_and_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = run_study(
        [
            "data=curve",
            *(o for o in SMALL if "batch_size" not in o),
            "loader.num_workers=1",
            "loader.persistent_workers=true",
        ],
        {"optimizer.lr": "tag(log, interval(1e-4, 1e-1))", "trainer.batch_size": [16, 512]},
        config_dir="own",
        n_trials=3,
        n_jobs=2,  # joblib starts these in a way that torch cannot use for its own workers
        seeds=2,
        pack=4,
        sampler="random",
        pruner="asha",
    )
    why = "trains sequentially: its data are torch datasets, which each trial loads batch by batch"
    assert [trial.packing for trial in study.results] == [why] * 3
    assert {trial.state for trial in study.results} <= {"complete", "pruned"}
    assert all(
        trial.params.get("trainer.batch_size", 16) == 16 for trial in study.results
    )  # 512 is more than there are
    workers = [child for child in psutil.Process().children() if "LokyProcess" in " ".join(child.cmdline())]
    assert [loader for worker in workers for loader in worker.children()] == []  # joblib keeps its own for a while


@pytest.mark.parametrize("kind", ["map", "stream"])
def test_a_range_test_trains_on_datasets(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TESTS)
    more = ["lr_range.n_updates=40", "lr_range.n_seeds=2", "trainer.max_steps=100", f"data.kind={kind}"]
    ramps = range_test(validate(compose(["data=curve", *SMALL, *more], config_dir=str(tmp_path / "own"))))
    assert [len(ramp.losses) for ramp in ramps if not ramp.diverged] == [40] * sum(not r.diverged for r in ramps)
    assert len(ramps) == 2
