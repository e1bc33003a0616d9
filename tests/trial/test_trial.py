"""sweep/trial/run.py: a trial as a library call, what it returns, records and leaves as it was."""

import gc
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import OVERSHOOTING, SMALL, kill_a_trial, make_loop, the_run
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from packs import tensor_data
from torch.nn import functional
from waiting import wait_until

from sweep import ConfigError, Diverged, Outcome, compose, run_trial
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.tracking.upload_process import UploadProcess
from sweep.training import checkpoint
from sweep.utils import gc_control
from sweep.utils.curve import Curve
from sweep.utils.errors import Interrupted, TrainingFailed

pytestmark = pytest.mark.process  # commands, servers, a browser

Trial = Callable[..., Outcome]
DROPOUT = "model.dropout=0.3"  # so that the generators' states count


def assert_same_history(a: dict[str, Curve], b: dict[str, Curve]) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name].steps, b[name].steps, name)
        np.testing.assert_array_equal(a[name].values, b[name].values, name)


def test_an_outcome_says_what_came_out_and_where_it_is(small_trial: Trial, tmp_path: Path) -> None:
    outcome = small_trial(*OVERSHOOTING)
    assert outcome.name == "sgd-constant-mlp-noisy_sine-s0"
    assert outcome.n_epochs == 12
    values = outcome.history["val/loss"].values
    assert outcome.value == values.min() == outcome.metrics["val/loss"]
    assert outcome.best_epoch == values.argmin() + 1 < 12
    assert outcome.metrics["val/mae"] == outcome.history["val/mae"].values[values.argmin()]
    assert {"test/loss", "test/mse", "test/mae", "test/r2", "test/excess", "test/noise_ratio"} < set(outcome.metrics)
    assert outcome.train_s > 0
    assert outcome.folder.parent == tmp_path / "outputs" / "runs"
    assert outcome.tracking_uri is None
    written = {path.name for path in outcome.folder.iterdir()}
    assert written > {"config.yaml", "overrides.yaml", "journal.jsonl", "best.pt", "curves.png"}


@pytest.mark.parametrize("is_a_commands", [True, False])
def test_a_command_collects_garbage_while_it_trains_and_a_program_as_it_likes(
    small_trial: Trial, is_a_commands: bool
) -> None:
    pause, collects = gc_control.pause if is_a_commands else gc.disable, []
    pause()
    try:
        small_trial(report=lambda epoch, metrics: collects.append(gc.isenabled()))
    finally:
        gc.enable()
    assert set(collects) == {is_a_commands}


def test_the_history_has_every_recorded_curve_as_arrays(small_trial: Trial) -> None:
    history = small_trial().history
    assert {"train/loss", "val/loss", "val/mse", "val/mae", "val/r2", "lr", "step/loss", "step/lr"} == set(history)
    for name, (steps, values) in history.items():
        assert (steps.dtype, values.dtype) == (np.int64, np.float64)
        assert steps.tolist() == list(range(1, 21 if name.startswith("step/") else 5)), name
        assert np.isfinite(values).all()
        assert len(values) == len(steps)
    np.testing.assert_array_equal(history["lr"].values, history["step/lr"].values[4::5])


def test_the_tested_weights_are_those_in_best_pt(small_trial: Trial) -> None:
    outcome = small_trial(*OVERSHOOTING)
    loop = make_loop(*OVERSHOOTING)
    saved = checkpoint.load(outcome.folder / "best.pt")
    assert (saved["epoch"], saved["value"]) == (outcome.best_epoch, outcome.value)
    loop.model.load_state_dict(saved["model"])
    data = tensor_data(loop)
    test = data.test
    assert test.clean is not None
    with torch.no_grad():
        outputs = loop.model(test.x)
    assert outcome.metrics["test/loss"] == pytest.approx(functional.mse_loss(outputs, test.y).item())
    excess = ((outputs - test.clean) * data.y_std).square().mean().item() / 0.1**2
    assert outcome.metrics["test/excess"] == pytest.approx(excess, rel=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "cycle_epochs"),
    [("sgd", 2), ("adam", 2), ("adam", 1), ("sgd", 3.4)],  # 10, 5 and 17 updates, with and without one at the peak
)
def test_the_recorded_learning_rate_is_the_studys_formula_at_every_step(
    optimizer: str, cycle_epochs: float, small_trial: Trial
) -> None:
    base_lr, max_lr = 2e-3, 5e-2
    outcome = small_trial(
        f"optimizer={optimizer}",
        f"scheduler.base_lr={base_lr}",
        f"scheduler.max_lr={max_lr}",
        f"scheduler.cycle_epochs={cycle_epochs}",
        "trainer.epochs=8",
    )
    steps, lrs = outcome.history["step/lr"]
    half_cycle = 5 * cycle_epochs / 2
    position = (steps - 1) / half_cycle  # in half cycles; odd at a peak
    cycle_progress = np.abs(position % 2 - 1)
    assert steps.tolist() == list(range(1, 41))
    np.testing.assert_allclose(lrs, base_lr + (max_lr - base_lr) * (1 - cycle_progress), rtol=1e-9)
    assert lrs[0] == base_lr


def test_a_seed_gives_the_same_history_bit_for_bit_and_another_seed_another(small_trial: Trial) -> None:
    def trial(seed: int) -> Outcome:
        torch.rand(1)  # what the process has drawn before does not matter
        return small_trial(DROPOUT, f"seed={seed}")

    first, again, other = trial(1), trial(1), trial(2)
    assert first.folder != again.folder
    assert_same_history(first.history, again.history)
    assert first.metrics == again.metrics
    assert not np.isin(other.history["step/loss"].values, first.history["step/loss"].values).any()


def _globals() -> dict[str, object]:
    """What a trial sets, or draws from, for itself."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "environment": dict(os.environ),
        "directory": Path.cwd(),
        "hydra": GlobalHydra.instance().is_initialized(),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
    }


@pytest.mark.parametrize("optimizer_lr", [1e-3, 1e30], ids=["finished", "diverged"])
def test_a_trial_leaves_the_process_as_it_was(optimizer_lr: float, small_trial: Trial) -> None:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        before = _globals()
        try:
            small_trial("optimizer=sgd", "scheduler=constant", f"optimizer.lr={optimizer_lr}", "trainer.threads=1")
        except Diverged:
            assert optimizer_lr > 1
        after = _globals()
    finally:
        torch.set_num_threads(n_threads)
        torch.use_deterministic_algorithms(False)
    assert after == before


def test_a_trial_does_not_change_the_config_it_was_given(upload_process: UploadProcess, tmp_path: Path) -> None:
    cfg = compose(["tracking=off", f"output_dir={tmp_path}/outputs", *SMALL])
    before = OmegaConf.to_yaml(cfg, resolve=False)
    assert "${seed}" in before, "interpolations are the first to go"
    run_trial(cfg, upload_process=upload_process)
    assert OmegaConf.to_yaml(cfg, resolve=False) == before


def test_report_hears_every_epoch_and_its_validation_loss(small_trial: Trial) -> None:
    observed: list[tuple[int, float]] = []
    outcome = small_trial(report=lambda epoch, metrics: observed.append((epoch, metrics["val/loss"])))
    steps, values = outcome.history["val/loss"]
    assert observed == list(zip(steps.tolist(), values.tolist(), strict=True))
    assert [epoch for epoch, _ in observed] == [1, 2, 3, 4]


def test_what_report_raises_ends_the_trial_as_failed_and_propagates(small_trial: Trial, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        if epoch == 2:
            raise Stopped("enough")

    with pytest.raises(Stopped, match="enough"):
        small_trial(report=report)
    run = RunFolder(the_run(tmp_path))
    assert journal.status(run.journal) == "FAILED"
    *_, (end, _) = journal.read(run.journal)
    assert end["tags"] == {"error": "Stopped: enough"}
    assert journal.curves(run.journal)["val/loss"].steps.tolist() == [1, 2]
    assert journal.curves(run.journal)["step/loss"].steps.tolist() == list(range(1, 11))
    assert not run.best.exists()


def test_divergence_is_recorded_with_step_and_lr_and_keeps_the_curves_so_far(
    small_trial: Trial, tmp_path: Path
) -> None:
    with pytest.raises(Diverged) as caught:
        small_trial("optimizer=sgd", "scheduler=constant", "optimizer.lr=5")
    path = the_run(tmp_path) / "journal.jsonl"
    *_, (end, _) = journal.read(path)
    assert (end["kind"], end["status"]) == ("end", "FAILED")
    assert end["tags"]["diverged"] == "true"
    assert (end["tags"]["diverged.step"], end["tags"]["diverged.lr"]) == (str(caught.value.step), "5.0")
    curve = journal.curves(path)["step/loss"]
    assert curve.steps.tolist() == list(range(1, caught.value.step))
    assert np.isfinite(curve.values).all()


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["data.n=96", "trainer.batch_size=69"], "trainer.batch_size"),  # of 68 samples to train on
        (["data=table", "data.path=nowhere.csv", "data.target=y"], "data.path"),
        (["+optimizer.momentums=0.9"], "optimizer.momentums"),
        (["optimizer.betas=[0.9,1.5]"], "optimizer"),
        (["model.activation=rela"], "model"),
        (["trainer.loss=cross_entropy"], "trainer.loss"),
        (["trainer.device=cuda:99"], "trainer.device"),
        (["scheduler=warmup_cosine", "scheduler.warmup_epochs=100%"], "scheduler"),
    ],
)
def test_a_config_error_is_raised_before_anything_is_recorded(
    overrides: list[str], key: str, upload_process: UploadProcess, tmp_path: Path
) -> None:
    cfg = compose(["tracking=off", f"output_dir={tmp_path}/outputs", *overrides])
    with pytest.raises(ConfigError) as caught:
        run_trial(cfg, upload_process=upload_process)
    assert caught.value.key.startswith(key)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.rglob("journal.jsonl")) == []


def test_a_trial_runs_in_a_thread_too(small_trial: Trial) -> None:
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(small_trial()))
    thread.start()
    thread.join()
    assert_same_history(outcomes[0].history, small_trial().history)


def test_ctrl_c_keeps_a_checkpoint_from_which_the_trial_goes_on_unchanged(small_trial: Trial, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as caught:
        small_trial(DROPOUT, report=lambda epoch, metrics: signal.raise_signal(signal.SIGINT) if epoch == 2 else None)
    assert caught.value.signum == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is handler
    folder = the_run(tmp_path)
    assert journal.status(RunFolder(folder).journal) == "KILLED"
    resumed = small_trial(f"resume={folder}")
    assert resumed.folder == folder
    assert journal.status(RunFolder(folder).journal) == "FINISHED"
    complete = small_trial(DROPOUT)
    assert_same_history(resumed.history, complete.history)
    assert resumed.metrics == complete.metrics


def test_a_trial_killed_at_the_end_of_an_epoch_resumes_to_the_same_numbers(small_trial: Trial, tmp_path: Path) -> None:
    overrides = (DROPOUT, "optimizer=nadam", "trainer.checkpoint_interval_s=1e-9")  # a checkpoint at every update
    folder = kill_a_trial(tmp_path, *overrides)
    assert journal.status(RunFolder(folder).journal) is None
    assert checkpoint.load(folder / "checkpoint.pt")["step"] == 15, "the last of epoch 3, not yet validated"
    resumed, complete = small_trial(f"resume={folder}"), small_trial(*overrides)
    assert_same_history(resumed.history, complete.history)
    assert resumed.metrics == complete.metrics
    assert (resumed.best_epoch, resumed.n_epochs) == (complete.best_epoch, complete.n_epochs)


def test_only_an_unfinished_trial_can_be_resumed(small_trial: Trial, tmp_path: Path) -> None:
    outcome = small_trial()
    with pytest.raises(ConfigError, match="has finished") as caught:
        small_trial(f"resume={outcome.folder}")
    assert caught.value.key == "resume"
    with pytest.raises(ConfigError) as caught:
        small_trial(f"resume={tmp_path}/nowhere")
    assert caught.value.key == "resume"


def test_a_trial_that_is_running_is_not_run_twice(small_trial: Trial, tmp_path: Path) -> None:
    refused: list[ConfigError] = []

    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        if epoch == 1:
            folder = the_run(tmp_path)
            with pytest.raises(ConfigError, match="being trained by another process") as caught:
                small_trial(f"resume={folder}")
            refused.append(caught.value)

    assert small_trial(report=report).n_epochs == 4
    assert [error.key for error in refused] == ["resume"]


def test_a_truncated_checkpoint_is_refused_and_nothing_more_is_recorded(small_trial: Trial, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        small_trial(report=lambda epoch, metrics: signal.raise_signal(signal.SIGTERM))
    folder = the_run(tmp_path)
    run = RunFolder(folder)
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:-100])
    before = run.journal.read_bytes()
    with pytest.raises(ConfigError, match="damaged") as caught:
        small_trial(f"resume={folder}")
    assert caught.value.key == "resume"
    assert run.journal.read_bytes() == before


def test_a_helper_that_dies_costs_the_picture_but_not_the_trial(tmp_path: Path) -> None:
    helper = UploadProcess(tmp_path)
    cfg = compose(["tracking=off", f"output_dir={tmp_path}/outputs", *SMALL])

    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        helper._process.kill()
        helper._process.wait()

    outcome = run_trial(cfg, report, upload_process=helper)
    helper.close()
    assert outcome.n_epochs == 4
    assert journal.status(RunFolder(outcome.folder).journal) == "FINISHED"
    assert not outcome.uploaded


def test_a_trial_leaves_no_process_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweep.tracking.upload_process.subprocess", subprocess)  # a child of this process

    def children() -> set[str]:
        return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}

    before = children()
    run_trial(compose(["tracking=off", f"output_dir={tmp_path}/outputs", *SMALL]))
    wait_until(lambda: children() == before, what="the helper to end, and be reaped")


def a_table(path: Path, slope: float) -> str:
    rows = [f"{i},{(i * 7) % 5},{slope * i}" for i in range(40)]
    path.write_text("\n".join(["a,b,y", *rows]))
    return str(path)


def test_a_trial_does_not_go_on_with_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    a_table(tmp_path / "rows.csv", slope=1.0)
    table = ["data=table", "data.path=rows.csv", "data.target=y", "trainer.batch_size=8", "trainer.epochs=3"]

    def stop(epoch: int, metrics: Mapping[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(compose([*table, "tracking=off", "output_dir=outputs"]), stop)
    folder = the_run(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    a_table(tmp_path / "rows.csv", slope=2.0)
    with pytest.raises(ConfigError, match="the data have changed"):
        run_trial(compose([f"resume={folder}"]))
    a_table(tmp_path / "rows.csv", slope=1.0)
    assert run_trial(compose([f"resume={folder}"])).n_epochs == 3


def test_debug_takes_64_samples_of_any_data(tmp_path: Path) -> None:
    cfg = compose(["experiment=debug", "data=digits", "tracking=off", f"output_dir={tmp_path}"])
    outcome = run_trial(cfg)
    start = journal.first(RunFolder(outcome.folder).journal, "start")
    assert start is not None
    profile = start["dataset"]["profile"]
    assert (profile["n_train"], profile["n_val"], profile["n_test"]) == (44, 10, 10)


def test_a_trial_of_the_library_records_the_command_that_reruns_it(small_trial: Trial) -> None:
    start = journal.first(RunFolder(small_trial().folder).journal, "start")
    assert start is not None
    assert start["tags"]["command"].startswith("python -m sweep.run ")
    assert f"{SMALL[0]}" in start["tags"]["command"]


def test_a_config_that_was_edited_has_no_command(upload_process: UploadProcess, tmp_path: Path) -> None:
    cfg = compose(["tracking=off", f"output_dir={tmp_path}/outputs", *SMALL])
    cfg.trainer.epochs = 2
    start = journal.first(RunFolder(run_trial(cfg, upload_process=upload_process).folder).journal, "start")
    assert start is not None
    assert start["tags"]["command"] == ""


def test_another_target_gives_the_run_its_name_and_tag(small_trial: Trial) -> None:
    outcome = small_trial("optimizer._target_=torch.optim.Adamax", "~optimizer.fused")
    start = journal.first(RunFolder(outcome.folder).journal, "start")
    assert start is not None
    assert start["name"].startswith("adamax-cyclic-mlp")
    assert (start["tags"]["optimizer"], start["tags"]["device"]) == ("adamax", "cpu")
    assert start["params"]["optimizer._target_"] == "torch.optim.Adamax"


@pytest.mark.parametrize("overrides", [("optimizer._target_=torch.optim.SparseAdam", "~optimizer.weight_decay")])
def test_what_torch_raises_while_training_is_told_in_one_line(overrides: tuple[str, ...], small_trial: Trial) -> None:
    with pytest.raises(TrainingFailed, match="at step 1: RuntimeError: SparseAdam does not support dense gradients"):
        small_trial(*overrides, "~optimizer.fused")


def test_a_closed_terminal_stops_a_trial_unless_that_is_ignored(small_trial: Trial) -> None:
    def close_terminal(epoch: int, metrics: object) -> None:
        signal.raise_signal(signal.SIGHUP)

    with pytest.raises(Interrupted) as caught:
        small_trial(report=close_terminal)
    assert caught.value.signum == signal.SIGHUP
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert small_trial("seed=1", report=close_terminal).n_epochs == 4
    finally:
        signal.signal(signal.SIGHUP, before)
