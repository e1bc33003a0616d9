"""The trainer's keys for updates, averages and validations: trained as a plain loop would, and resumed bit for bit."""

import copy
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RecordingTrial, as_file, make_loop
from packs import member_of, pack_of, tensor_data, together, weighted
from processes import recorded
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR

from sweep import ConfigError, Outcome, compose
from sweep.config.schema import validate
from sweep.tracking.folders import RunFolder
from sweep.training import checkpoint, loop
from sweep.training.loop import TrainingLoop
from sweep.training.packed.parameters import Unpackable
from sweep.training.tensors import epoch_order
from sweep.trial.pack_scheduler import PackScheduler
from sweep.trial.prepare import load_data

PLAIN = ("optimizer=sgd", "scheduler=constant", "optimizer.lr=0.1")
CYCLIC = ("optimizer=adam", "scheduler=cyclic", "scheduler.cycle_epochs=2")


def trained(*overrides: str, has_weights: bool = False) -> tuple[TrainingLoop, RecordingTrial]:
    """4 epochs of 68 samples, in batches of 16, unless the overrides say otherwise."""
    fit, observed = make_loop(*overrides), RecordingTrial()
    fit = weighted(fit) if has_weights else fit
    fit.run(observed)
    return fit, observed


def losses(observed: RecordingTrial) -> list[float]:
    return [loss for loss, _ in observed.points.values()]


def lrs(observed: RecordingTrial) -> list[float]:
    return [lr for _, lr in observed.points.values()]


# Updates


@pytest.mark.parametrize("has_weights", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_accumulated_batches_train_like_one_batch_of_their_samples(n: int, has_weights: bool) -> None:
    """Also where the last group is incomplete, and its last batch smaller."""
    fit, observed = trained(*CYCLIC, f"trainer.accumulate={n}", has_weights=has_weights)
    large, expected = trained(*CYCLIC, f"trainer.batch_size={min(68, 16 * n)}", has_weights=has_weights)
    assert fit.step == large.step == 4 * -(-68 // (16 * n))
    assert lrs(observed) == lrs(expected)
    assert losses(observed) == pytest.approx(losses(expected), rel=1e-5)
    for epoch, metrics in expected.epochs.items():
        assert observed.epochs[epoch] == pytest.approx(metrics, rel=1e-5)


def test_weighted_samples_train_as_in_a_plain_loop() -> None:
    """Though all samples of the second update have the weight 0, and a validation is in the middle of an epoch."""
    fit, observed = weighted(make_loop(*PLAIN, "trainer.val_interval=7 steps", "trainer.epochs=3")), RecordingTrial()
    train, val = tensor_data(fit).train, tensor_data(fit).val
    assert train.weights is not None
    train.weights[epoch_order(0, 1, 68)[16:32]] = 0
    model = copy.deepcopy(fit.model)
    optimizer = SGD(model.parameters(), 0.1)
    expected, sums, validations = list[float](), list[float](), list[float]()
    for epoch in (1, 2, 3):
        for rows in epoch_order(0, epoch, 68).split(16):
            weights = train.weights[rows]
            optimizer.zero_grad()
            loss = (weights[:, None] * (model(train.x[rows]) - train.y[rows]).square()).sum() / (weights.sum() or 1)
            loss.backward()
            optimizer.step()
            expected.append(loss.item())
            sums.append(weights.sum().item())
            if len(expected) in (7, 14, 15):
                with torch.no_grad():
                    squares = (model(val.x) - val.y).square().squeeze(1)
                validations.append(float(np.average(squares, weights=val.weights)))
    fit.run(observed)
    assert losses(observed) == pytest.approx(expected, rel=1e-5)
    assert losses(observed)[1] == 0
    assert observed.curve("val/loss") == pytest.approx(validations, rel=1e-5)
    means = [np.average(expected[part], weights=sums[part]) for part in (slice(7), slice(7, 14), slice(14, 15))]
    assert observed.curve("train/loss") == pytest.approx(means, rel=1e-5)


def by_hand(fit: TrainingLoop, clip_value: float, decay: float) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The model, and the moving average of its weights, after a plain loop of 2 epochs."""
    model, train = copy.deepcopy(fit.model), tensor_data(fit).train
    optimizer, average = SGD(model.parameters(), 0.1), dict[str, torch.Tensor]()
    for epoch in (1, 2):
        for rows in epoch_order(0, epoch, 68).split(16):
            optimizer.zero_grad()
            functional.mse_loss(model(train.x[rows]), train.y[rows]).backward()
            for weight in model.parameters():
                assert weight.grad is not None
                weight.grad.clamp_(-clip_value, clip_value)
            optimizer.step()
            for name, weight in model.state_dict().items():
                average[name] = weight.clone() if name not in average else decay * average[name] + (1 - decay) * weight
    return model, average


def test_gradients_are_clipped_by_value() -> None:
    fit = make_loop(*PLAIN, "trainer.clip_value=0.02", "trainer.epochs=2")
    model, _ = by_hand(fit, 0.02, 0.5)
    unclipped, _ = by_hand(fit, 1e9, 0.5)
    fit.run(RecordingTrial())
    torch.testing.assert_close(dict(fit.model.state_dict()), dict(model.state_dict()))
    assert not torch.allclose(model.get_parameter("layers.0.weight"), unclipped.get_parameter("layers.0.weight"))


def test_packed_trials_are_clipped_by_value_each_by_its_own() -> None:
    overrides = [
        (*PLAIN, "trainer.clip_norm=0.3", f"trainer.clip_value={value}", f"seed={seed}")
        for seed, value in enumerate((0.01, 0.1, 9))
    ]
    alone = [trained(*own)[1] for own in overrides]
    fits = [make_loop(*own) for own in overrides]
    placed = [member_of(fit) for fit in fits]
    together(pack_of(fits[0]), [member for member, _ in placed])
    for (_, observed), expected in zip(placed, alone, strict=True):
        assert losses(observed) == pytest.approx(losses(expected), rel=1e-5)
    assert losses(alone[0]) != losses(trained(*overrides[0], "trainer.clip_value=null")[1])


def test_the_average_of_the_weights_is_validated_kept_and_tested() -> None:
    fit = make_loop(*PLAIN, "trainer.ema=0.8", "trainer.epochs=2")
    model, average = by_hand(fit, 1e9, 0.8)
    observed = RecordingTrial()
    fit.run(observed)
    assert fit.best is not None
    assert fit.best.epoch == 2, "the case needs the last epoch to be the best"
    torch.testing.assert_close(dict(fit.model.state_dict()), dict(model.state_dict()))
    torch.testing.assert_close(fit.best.weights, average)
    model.load_state_dict(average)
    with torch.no_grad():
        expected = functional.mse_loss(model(tensor_data(fit).val.x), tensor_data(fit).val.y).item()
        tested = functional.mse_loss(model(tensor_data(fit).test.x), tensor_data(fit).test.y).item()
    assert observed.epochs[2]["val/loss"] == pytest.approx(expected, rel=1e-6)
    assert fit.test(0.1)["test/loss"] == pytest.approx(tested, rel=1e-6)


# The end


def torchs_lrs(n_steps: int) -> list[float]:
    optimizer = SGD(nn.Linear(1, 1).parameters(), 0.1)
    schedule = OneCycleLR(optimizer, max_lr=0.1, total_steps=n_steps, cycle_momentum=False)
    found = []
    for _ in range(n_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(found) < n_steps:
            schedule.step()
    return found


TORCHS = "scheduler._target_=torch.optim.lr_scheduler.OneCycleLR"


@pytest.mark.parametrize("target", [(), (TORCHS, "+scheduler.cycle_momentum=false")], ids=["ours", "torch's"])
@pytest.mark.parametrize("n", [3, 5, 7, 19])
def test_max_steps_ends_the_training_and_its_schedule(n: int, target: tuple[str, ...]) -> None:
    schedule = ("optimizer=sgd", "scheduler=onecycle", "scheduler.max_lr=0.1", *target)
    fit, observed = trained(*schedule, f"trainer.max_steps={n}")
    assert fit.step == len(observed.points) == n
    assert lrs(observed) == pytest.approx(torchs_lrs(n))
    assert list(observed.epochs) == list(range(1, -(-n // 5) + 1))
    assert observed.curve("lr")[-1] == lrs(observed)[-1]
    sizes = ([16, 16, 16, 16, 4] * 4)[:n]
    in_last = slice(5 * (len(observed.epochs) - 1), n)
    weighted = [loss * size for loss, size in zip(losses(observed), sizes, strict=True)]
    assert observed.curve("train/loss")[-1] == pytest.approx(sum(weighted[in_last]) / sum(sizes[in_last]), rel=1e-6)


@pytest.mark.parametrize("scheduler", ["cosine", "warmup_cosine", "cosine_restarts", "cyclic", "step"])
def test_shares_in_schedules_are_of_the_cut_run(scheduler: str) -> None:
    _, observed = trained("optimizer=sgd", f"scheduler={scheduler}", "trainer.max_steps=10")
    _, complete = trained("optimizer=sgd", f"scheduler={scheduler}", "trainer.epochs=2")
    assert lrs(observed) == pytest.approx(lrs(complete)), "10 updates are 2 epochs"


def test_more_steps_than_the_epochs_have_change_nothing() -> None:
    assert trained(*CYCLIC, "trainer.max_steps=999")[1].points == trained(*CYCLIC)[1].points


# Validation


@pytest.mark.parametrize(("interval", "epochs"), [("2", [2, 4]), ("3", [3, 4]), ("9", [4])])
def test_every_few_epochs_are_validated_and_always_the_last(interval: str, epochs: list[int]) -> None:
    _, observed = trained(*CYCLIC, f"trainer.val_interval={interval}")
    _, each = trained(*CYCLIC)
    assert observed.points == each.points
    assert list(observed.epochs) == epochs
    for epoch in epochs:
        assert observed.epochs[epoch]["val/loss"] == each.epochs[epoch]["val/loss"]
    first = epochs[0]
    assert observed.curve("train/loss")[0] == pytest.approx(sum(each.curve("train/loss")[:first]) / first, rel=1e-6)


def test_validation_after_some_updates_numbers_its_reports() -> None:
    fit, observed = trained(*CYCLIC, "trainer.val_interval=3 steps")
    complete, each = trained(*CYCLIC)
    assert observed.points == each.points, "validation changes no update"
    assert list(observed.epochs) == [1, 2, 3, 4, 5, 6, 7], "20 updates"
    assert observed.epochs[5]["val/loss"] == each.epochs[3]["val/loss"], "both are after update 15"
    assert observed.epochs[7]["val/loss"] == each.epochs[4]["val/loss"], "both are after update 20"
    assert fit.best is not None
    assert complete.best is not None
    assert fit.best.value <= complete.best.value


@pytest.mark.parametrize("interval", ["1", "2", "3", "3 steps", "7 steps", "12 steps", "99 steps"])
def test_a_schedule_of_epochs_is_one_of_epochs_whenever_is_validated(interval: str) -> None:
    overrides = ("optimizer=sgd", "scheduler=exponential", "trainer.epochs=6")
    _, observed = trained(*overrides, f"trainer.val_interval={interval}")
    optimizer = SGD(nn.Linear(1, 1).parameters(), validate(compose(overrides)).optimizer["lr"])
    schedule, expected = ExponentialLR(optimizer, validate(compose(overrides)).scheduler["gamma"]), []
    for _ in range(6):
        expected += [optimizer.param_groups[0]["lr"]] * 5
        optimizer.step()
        schedule.step()
    assert lrs(observed) == expected
    assert len(set(expected)) == 6


# Resuming

RECIPES: Mapping[str, tuple[str, ...]] = {
    "accumulate": ("trainer.accumulate=2",),
    "ema": ("trainer.ema=0.7",),
    "clip_value": ("trainer.clip_value=0.05",),
    "max_steps": ("trainer.max_steps=13",),
    "epochs": ("trainer.val_interval=2",),
    "steps": ("trainer.val_interval=3 steps",),
    "all": (
        "trainer.accumulate=2",
        "trainer.ema=0.7",
        "trainer.clip_value=0.05",
        "trainer.max_steps=10",
        "trainer.val_interval=4 steps",
    ),
    "epoch-schedule": ("trainer.val_interval=7 steps", "scheduler=exponential"),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_resumed_trial_equals_an_uninterrupted_one_bit_for_bit(recipe: tuple[str, ...]) -> None:
    """From a checkpoint after each update, and after each epoch."""
    schedule = () if any("scheduler" in o for o in recipe) else CYCLIC
    overrides = (*schedule, *recipe, "model.dropout=0.3")
    saved: list[bytes] = []
    complete, complete_observed = (
        make_loop(*overrides),
        RecordingTrial(saves=True, on_save=lambda state: saved.append(as_file(state))),
    )
    complete.run(complete_observed)
    assert len(saved) > len(complete_observed.epochs)
    assert trained(*overrides)[1].points == complete_observed.points, "saving changes nothing"
    for state in saved:
        fit = make_loop(*overrides)
        with torch.no_grad():
            for weight in fit.model.parameters():
                weight.uniform_()
        fit.load_state_dict(torch.load(io.BytesIO(state), weights_only=True))
        observed = RecordingTrial()
        fit.run(observed)
        assert observed.points.items() <= complete_observed.points.items()
        assert observed.epochs.items() <= complete_observed.epochs.items()
        assert fit.best is not None
        assert complete.best is not None
        assert (fit.best.epoch, fit.best.value) == (complete.best.epoch, complete.best.value)
        assert all(torch.equal(weight, complete.best.weights[name]) for name, weight in fit.best.weights.items())
        for name, weight in complete.model.state_dict().items():
            assert torch.equal(fit.model.state_dict()[name], weight), name


# Runs and studies


@pytest.mark.process
def test_a_run_records_and_resumes_validations_in_updates(small_trial: Any, tmp_path: Path) -> None:
    overrides = ("trainer.val_interval=3 steps", "trainer.ema=0.7", "trainer.max_steps=14")
    outcome: Outcome = small_trial(*overrides)
    run = RunFolder(outcome.folder)
    steps, values = recorded(run)["val/loss"]
    assert steps == [1, 2, 3, 4, 5]
    assert outcome.n_epochs == 5
    assert outcome.value == min(values)
    saved = checkpoint.load(run.best)
    fit = make_loop(*overrides)
    fit.run(RecordingTrial())
    assert fit.best is not None
    assert all(torch.equal(weight, saved["model"][name]) for name, weight in fit.best.weights.items())

    def stop(epoch: int, metrics: Mapping[str, float]) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_trial(*overrides, "trainer.checkpoint_interval_s=0", f"output_dir={tmp_path}/o", report=stop)
    (folder,) = (tmp_path / "o" / "runs").iterdir()
    resumed: Outcome = small_trial(f"resume={folder}")
    assert recorded(RunFolder(resumed.folder))["val/loss"] == (steps, values)
    assert resumed.metrics == outcome.metrics


# Refusals


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.accumulate=0", "trainer.accumulate: must be >= 1 batch, got 0"),
        ("trainer.ema=1", "trainer.ema: must be between 0 and 1 or null, got 1.0"),
        ("trainer.ema=0", "trainer.ema: must be between 0 and 1 or null, got 0.0"),
        ("trainer.clip_value=0", "trainer.clip_value: must be > 0 or null, got 0.0"),
        ("trainer.max_steps=0", "trainer.max_steps: must be >= 1 update or null, got 0"),
        ("trainer.val_interval=0", "trainer.val_interval: must be a number of epochs >= 1, or of updates"),
        ("trainer.val_interval=0 steps", "trainer.val_interval: must be a number of epochs >= 1, or of updates"),
        ("trainer.val_interval=5 hours", "trainer.val_interval: must be a number of epochs >= 1, or of updates"),
        ("trainer.val_interval=true", "trainer.val_interval: Value 'True' of type 'bool' is incompatible"),
        ("trainer.callbacks=[3]", "trainer.callbacks.0: needs a _target_, such as {_target_: mypkg.Images}"),
        ("trainer.callbacks=[{_target_: os.system}]", "trainer.callbacks.0._target_: 'os.system' is not an allowed"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(compose([override]))
    assert str(caught.value).startswith(says)


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^trainer\.precision: fp16 needs a GPU; use bf16 or float32 on a CPU$"):
        make_loop("trainer.precision=fp16", "trainer.device=cpu")


@pytest.mark.parametrize(
    "recipe", [PLAIN, (*CYCLIC, "trainer.accumulate=2", "trainer.ema=0.5", "trainer.clip_value=0.1")]
)
def test_fp16_trains_like_float32_but_for_rounding(recipe: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU on the CPU: too slow for users, but torch computes and scales in the same way."""
    monkeypatch.setattr(loop, "refuse_fp16", lambda precision, device: None)
    overrides = (*recipe, "trainer.clip_norm=0.5", "trainer.epochs=8")
    fit, half = trained(*overrides, "trainer.precision=fp16")
    _, full = trained(*overrides)
    assert half.curve("val/loss") == pytest.approx(full.curve("val/loss"), rel=0.2)  # first steps may be skipped
    assert half.curve("val/loss") != full.curve("val/loss")
    scaler = fit.state_dict()["scaler"]
    assert scaler["scale"] > 1
    resumed = make_loop(*overrides, "trainer.precision=fp16")
    resumed.load_state_dict(fit.state_dict())
    assert resumed.state_dict()["scaler"] == scaler != make_loop(*overrides).state_dict()["scaler"]
    assert {weight.dtype for weight in fit.model.state_dict().values()} == {torch.float32}


class WithModes(Adam):
    """As a schedule-free optimizer."""

    def train(self) -> None: ...
    def eval(self) -> None: ...


def test_an_average_of_an_average_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", f"{__name__}.*")
    with pytest.raises(ConfigError, match=r"^trainer\.ema: this optimizer averages the weights itself"):
        make_loop("optimizer=adam", f"optimizer._target_={__name__}.WithModes", "trainer.ema=0.9")


@pytest.mark.parametrize(
    "override", ["accumulate=2", "ema=0.9", "max_steps=7", "val_interval=2", "val_interval=5 steps"]
)
def test_what_a_pack_does_not_have_trains_sequentially(override: str) -> None:
    config = validate(compose(["experiment=debug", "tracking=off", f"trainer.{override}"]))
    with pytest.raises(Unpackable, match=rf"^trainer\.{override.partition('=')[0]} is set$"):
        PackScheduler(2, 2, load_data).member(config)
