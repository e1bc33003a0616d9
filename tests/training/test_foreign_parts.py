"""What users bring: torch's own schedulers and optimizers, schedule-free ones, models of other kinds, awkward sizes."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RecordingTrial, make_loop
from processes import quick
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR, SequentialLR

from sweep import ConfigError, Diverged, Samples, compose, run_trial
from sweep.training.loop import TrainingLoop
from sweep.training.schedule import Schedule
from sweep.trial import build

pytestmark = pytest.mark.targets(f"{__name__}.*")

DEBUG = ("experiment=debug", "tracking=off")  # 2 epochs of 46 samples, in batches of 64 or fewer


def own(name: str) -> str:
    return f"{__name__}.{name}"


def trained(*overrides: str) -> tuple[TrainingLoop, RecordingTrial]:
    fit, observed = make_loop(*overrides), RecordingTrial()
    fit.run(observed)
    return fit, observed


def refused(tmp_path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        run_trial(compose([*DEBUG, f"output_dir={tmp_path}", *overrides]))
    assert not [*tmp_path.glob("runs/*/journal.jsonl")], "nothing is recorded"
    return str(caught.value)


# Schedulers


class MyCycle(OneCycleLR):
    """A subclass."""


def chained(optimizer: Optimizer) -> LRScheduler:
    parts = [ConstantLR(optimizer, 0.1, 3), OneCycleLR(optimizer, max_lr=1.0, total_steps=9)]
    return SequentialLR(optimizer, parts, milestones=[3])


def halving(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total_steps)


CYCLE = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 1.0}
TRIANGLE = {"_target_": "torch.optim.lr_scheduler.CyclicLR", "base_lr": 0.1, "max_lr": 1.0, "step_size_up": 3}


@pytest.mark.parametrize(
    ("node", "per_update"),
    [
        (CYCLE, True),
        ({**CYCLE, "total_steps": 12}, True),
        ({**CYCLE, "_target_": own("MyCycle")}, True),
        ({**TRIANGLE, "cycle_momentum": False}, True),
        ({"_target_": own("chained")}, True),
        ({"_target_": own("halving")}, True),
        ({**CYCLE, "interval": "epoch"}, False),
        ({"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 1}, False),
        ({"_target_": "torch.optim.lr_scheduler.ExponentialLR", "gamma": 0.5}, False),
    ],
)
def test_torchs_schedulers_of_batches_are_stepped_after_each_update(node: Mapping[str, Any], per_update: bool) -> None:
    make = build.scheduler(node, steps_per_epoch=4, epochs=3)
    schedule = Schedule(SGD(nn.Linear(1, 1).parameters(), 0.1), make, build.interval(node))
    epochs = []
    for _ in range(3):
        schedule.start_epoch(4)
        epochs.append([row[0]["lr"] for row in schedule.rows])
        schedule.end_epoch(1.0)
    assert all(len(set(lrs)) > 1 for lrs in epochs) is per_update
    if per_update and "OneCycleLR" in node["_target_"]:
        assert epochs[-1][-1] < 1e-4 < max(max(epochs)), "it anneals fully"


def test_a_run_that_was_stepped_per_epoch_goes_on_so() -> None:
    make = build.scheduler(CYCLE, steps_per_epoch=4, epochs=3)
    earlier, now = (Schedule(SGD(nn.Linear(1, 1).parameters(), 0.1), make, interval) for interval in ("epoch", None))
    earlier.start_epoch(4)
    earlier.end_epoch(1.0)
    now.load_state_dict(earlier.state_dict())
    now.start_epoch(4)
    assert len({row[0]["lr"] for row in now.rows}) == 1


@pytest.mark.parametrize(("pct_start", "epochs"), [("0.5", 1), ("0.1", 5), ("1", 1), ("1.0", 1)])
def test_a_rise_of_one_update_or_of_all_is_a_rise(pct_start: str, epochs: int) -> None:
    sizes = ("trainer.batch_size=34", f"trainer.epochs={epochs}")  # two updates an epoch
    _, observed = trained("scheduler=onecycle", "scheduler.max_lr=0.01", f"scheduler.pct_start={pct_start}", *sizes)
    lrs = [lr for _, lr in observed.points.values()]
    assert max(lrs) == pytest.approx(0.01)
    assert (lrs.index(max(lrs)) == 1) is (float(pct_start) == 1)


@pytest.mark.process
def test_one_cycle_has_no_room_in_one_update(tmp_path: Path) -> None:
    message = refused(tmp_path, "scheduler=onecycle", "trainer.epochs=1", "trainer.batch_size=44")
    assert (
        message
        == "scheduler: a rise and a fall need two updates, the run has one; raise trainer.epochs, or lower "
        + ("trainer.batch_size")
    )
    torchs = ("scheduler=constant", "scheduler._target_=torch.optim.lr_scheduler.OneCycleLR", "+scheduler.max_lr=0.1")
    message = refused(tmp_path, *torchs, "+scheduler.pct_start=0.5", "trainer.batch_size=44")
    assert message.startswith("scheduler: divides by 0 with 2 updates; change scheduler.pct_start")


# Optimizers


class ScheduleFree(SGD):
    """As of the package `schedulefree`: it evaluates an average of the weights, and insists on its modes."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.param_groups[0]["train_mode"] = False
        self.param_groups[0]["k"] = 0

    def train(self) -> None:
        self._switch(True)

    def eval(self) -> None:
        self._switch(False)

    def _switch(self, to: bool) -> None:
        if self.param_groups[0]["train_mode"] == to:
            return
        self.param_groups[0]["train_mode"] = to
        with torch.no_grad():
            for weight in self.param_groups[0]["params"]:
                weight.mul_(2.0 if to else 0.5)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        if not self.param_groups[0]["train_mode"]:
            raise Exception("Optimizer was not in train mode when step is called")
        self.param_groups[0]["k"] += 1
        return super().step()


@pytest.mark.process
def test_a_schedule_free_optimizer_trains_in_train_mode_and_is_judged_in_eval_mode(tmp_path: Path) -> None:
    optimizer = (
        "optimizer=sgd",
        f"optimizer._target_={own('ScheduleFree')}",
        "scheduler=constant",
        "optimizer.lr=0.01",
    )
    only = [f"~optimizer.{key}" for key in compose(["optimizer=sgd"]).optimizer if key not in ("_target_", "lr")]
    fit, observed = trained(*optimizer, *only)
    assert fit.optimizer.param_groups[0]["train_mode"] is False
    assert fit.optimizer.param_groups[0]["k"] == fit.step
    assert fit.best is not None
    fit.model.load_state_dict(fit.best.weights)
    assert fit.evaluate("val")["val/loss"] == fit.best.value == min(observed.curve("val/loss"))
    outcome = run_trial(compose([*DEBUG, *optimizer, *only, f"output_dir={tmp_path}"]))
    assert np.isfinite(outcome.value)


class Broken(SGD):
    """Whose shadow cannot be built."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        raise AttributeError("no such thing")


@pytest.mark.process
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("torch.optim.LBFGS", "optimizer._target_: torch.optim.LBFGS evaluates the loss itself"),
        ("torch.optim.Muon", "optimizer: Muon only supports 2D parameters"),
        (own("Broken"), "optimizer: no such thing"),
    ],
)
def test_an_optimizer_that_does_not_work_is_refused_in_one_line(target: str, message: str, tmp_path: Path) -> None:
    only = [f"~optimizer.{key}" for key in compose(["optimizer=sgd"]).optimizer if key not in ("_target_", "lr")]
    line = refused(tmp_path, "optimizer=sgd", f"optimizer._target_={target}", *only)
    assert line.startswith(message)
    assert "\n" not in line


class Dead(nn.Linear):
    """Whose gradients are 0."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 0


def test_a_loss_that_eps_0_ruins_is_not_blamed_on_the_learning_rate() -> None:
    fit = make_loop("optimizer=adam", "optimizer.eps=0", make_model=lambda: Dead(1, 1))
    with pytest.raises(Diverged, match=r"set optimizer\.eps above 0"):
        fit.run(RecordingTrial())


# Models


class LightningModule(nn.Module):
    """As of the package; here it is known by what it can do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> None: ...
    def configure_optimizers(self) -> None: ...


Packaged = type(
    "Packaged", (type("LightningModule", (nn.Linear,), {"__module__": "lightning.pytorch.core.module"}),), {}
)


class Answers(nn.Linear):
    """Returns a dict, as models of transformers do."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)

    def forward(self, input: Tensor) -> Any:
        return {"logits": super().forward(input)}


def plain_function(in_features: int) -> int:
    return in_features


@pytest.mark.process
@pytest.mark.parametrize(
    ("target", "message"),
    [
        (own("LightningModule"), f"model._target_: {own('LightningModule')} is a LightningModule, whose training_step"),
        ("torch.optim.Adam", "model._target_: torch.optim.Adam is an optimizer, not a torch.nn.Module; see optimizer"),
        (own("plain_function"), f"model._target_: {own('plain_function')} returned int, not a torch.nn.Module"),
        (own("Answers"), "model: returned dict for a batch of "),
    ],
)
def test_what_is_no_model_is_refused(target: str, message: str, tmp_path: Path) -> None:
    only = [f"~model.{key}" for key in compose(["model=mlp"]).model if key != "_target_"]
    assert refused(tmp_path, "model=mlp", f"model._target_={target}", *only).startswith(message)


@pytest.mark.process
def test_a_study_of_what_is_no_model_records_nothing(tmp_path: Path) -> None:
    only = [f"~model.{key}" for key in compose(["model=mlp"]).model if key != "_target_"]
    study = ("-m", "experiment=debug", "tracking=off", "hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=2")
    targets, path = f"{__name__}.*", f"{Path(__file__).parent}:{Path(__file__).parents[1]}"
    model = (f"model._target_={own('LightningModule')}", *only)
    done = quick(tmp_path, *study, *model, PYTHONPATH=path, SWEEP_TARGETS=targets)
    assert f"error: model._target_: {own('LightningModule')} is a LightningModule" in done.stderr
    assert done.returncode == 2
    assert not [*tmp_path.glob("outputs/studies/s/trials/*")]


def test_lightnings_own_class_is_known_by_its_name() -> None:
    samples = Samples(name="n", task="regression", x=np.zeros((4, 1)), y=np.zeros(4))
    node = {"_target_": own("Packaged"), "in_features": 1, "out_features": 1}
    with pytest.raises(ConfigError, match="is a LightningModule"):
        build.model(node, samples)


# Sizes


def normalised(in_features: int, out_features: int) -> nn.Module:
    return nn.Sequential(nn.Linear(in_features, 4), nn.BatchNorm1d(4), nn.Linear(4, out_features))


@pytest.mark.process
@pytest.mark.slow
def test_a_last_batch_of_one_sample_is_refused_where_batch_normalisation_would_fail(tmp_path: Path) -> None:
    only = [f"~model.{key}" for key in compose(["model=mlp"]).model if key != "_target_"]
    model = ("model=mlp", f"model._target_={own('normalised')}", *only)
    n = make_loop(*DEBUG, base=()).data.n_train
    sizes = [size for size in range(2, n) if n % size == 1]
    assert sizes, "the case needs a size that leaves one sample"
    message = refused(tmp_path, *model, f"trainer.batch_size={sizes[0]}")
    assert message.startswith(
        f"trainer.batch_size: is {sizes[0]}, so that the last batch of the {n} training samples has one"
    )
    named = [int(size) for size in message.rpartition("such as ")[2].split(", ")]
    assert named
    assert all(n % size != 1 and size > 1 for size in named)
    run_trial(compose([*DEBUG, *model, f"output_dir={tmp_path}", f"trainer.batch_size={named[0]}"]))


@pytest.mark.process
def test_r2_of_one_row_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one_row = ("data.n=40", "split.max_samples=40", "split.test=0.025")
    with caplog.at_level(logging.WARNING, "sweep"):
        outcome = run_trial(compose([*DEBUG, *one_row, f"output_dir={tmp_path}", "trainer.batch_size=8"]))
    assert "test/r2: left out" in caplog.text
    assert "test/r2" not in outcome.metrics
    assert {"val/r2", "test/mse"} < outcome.metrics.keys()
    message = refused(tmp_path / "no", *one_row, "split.test=0.5", "split.val=0.025", "trainer.monitor=val/r2")
    assert message.startswith(
        "trainer.monitor: trials on this data have no 'val/r2'; choose one of: train/loss, val/loss, val/mse"
    )
