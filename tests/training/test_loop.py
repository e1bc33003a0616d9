"""sweep/training/loop.py and tensors.py: which numbers a trial comes to, and that stopping it does not change them."""

import copy
import functools
import math
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import OVERSHOOTING, RecordingTrial, make_loop
from hypothesis import given
from hypothesis import strategies as st
from packs import tensor_data
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CyclicLR
from torch.testing import assert_close

from sweep.training import checkpoint, tensors
from sweep.training.loop import TrainingLoop
from sweep.training.tensors import TensorSplit, batches, epoch_order
from sweep.utils.errors import ConfigError, Diverged, Interrupted, TrainingFailed
from sweep.utils.signals import StopRequest

CYCLIC = ("scheduler=cyclic", "scheduler.base_lr=1e-3", "scheduler.max_lr=3e-2", "scheduler.cycle_epochs=2")


def run(fit: TrainingLoop, observed: RecordingTrial | None = None) -> RecordingTrial:
    observed = observed or RecordingTrial()
    fit.run(observed)
    return observed


def plain_loop(
    model: nn.Module, optimizer: Optimizer, fit: TrainingLoop, clip_norm: float | None
) -> tuple[list[float], list[dict[str, float]]]:
    """What a user would write without sweep, for `fit`'s data and order: the losses, and the epochs' metrics."""
    train, val = tensor_data(fit).train, tensor_data(fit).val
    scheduler = CyclicLR(optimizer, base_lr=1e-3, max_lr=3e-2, step_size_up=5, cycle_momentum=False)
    losses, epochs = [], []
    for epoch in range(1, 5):
        order, total, lr = epoch_order(0, epoch, 68), 0.0, 0.0
        for start in range(0, 68, 16):
            rows = order[start : start + 16]
            lr = optimizer.param_groups[0]["lr"]
            loss = functional.mse_loss(model(train.x[rows]), train.y[rows])
            optimizer.zero_grad()
            loss.backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
            total += loss.item() * len(rows)
        with torch.no_grad():
            val_loss = functional.mse_loss(model(val.x), val.y).item()
        epochs.append({"train/loss": total / 68, "val/loss": val_loss, "lr": lr})
    return losses, epochs


@pytest.mark.parametrize(
    ("optimizer", "rule", "clip_norm"),
    [
        ("sgd", SGD, None),
        ("adam", Adam, None),
        ("momentum", functools.partial(SGD, momentum=0.9), 0.2),
        ("adam", Adam, 0.2),
    ],
)
def test_training_equals_the_plain_pytorch_loop(
    optimizer: str, rule: Callable[..., Optimizer], clip_norm: float | None
) -> None:
    clip = () if clip_norm is None else (f"trainer.clip_norm={clip_norm}",)
    fit = make_loop(f"optimizer={optimizer}", *CYCLIC, *clip)
    model = copy.deepcopy(fit.model)
    losses, epochs = plain_loop(model, rule(model.parameters(), lr=1e-3), fit, clip_norm)
    observed = run(fit)
    rounding = 1e-7 if fit.device.type == "cpu" else 2e-6  # a GPU adds up in another order
    assert_close([loss for loss, _ in observed.points.values()], losses, rtol=rounding, atol=rounding)
    for name in ("train/loss", "val/loss", "lr"):
        assert_close(observed.curve(name), [epoch[name] for epoch in epochs], rtol=rounding, atol=rounding)
    assert_close(dict(fit.model.state_dict()), dict(model.state_dict()))


def test_an_optimizer_with_a_zero_grad_of_its_own_is_asked_to_forget_gradients() -> None:
    calls: list[bool] = []

    class Counting(SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            calls.append(set_to_none)
            super().zero_grad(set_to_none)

    plain, own = make_loop("optimizer=sgd"), make_loop("optimizer=sgd")
    own.optimizer = Counting([*own.model.parameters()], lr=1e-3)
    observed = run(own)
    assert calls == [True] * len(observed.points)
    assert observed.points == run(plain).points


def test_a_loss_for_each_element_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^task\.loss: returned \(16, 1\) for .*; set reduction=mean$"):
        make_loop("task/loss=mse", "+task.loss.reduction=none")


@pytest.mark.parametrize("size", [17, 34])  # the 68 samples are four batches, or two
def test_the_curve_of_a_loss_that_is_a_sum_depends_on_the_batch_size(size: int) -> None:
    still = ("optimizer=sgd", "scheduler=constant", "optimizer.lr=1e-12", "task/loss=mse", f"trainer.batch_size={size}")
    mean, total = (run(make_loop(*still, f"+task.loss.reduction={name}")) for name in ("mean", "sum"))
    assert_close(total.curve("train/loss"), [size * loss for loss in mean.curve("train/loss")], rtol=1e-5, atol=0)


def test_bf16_computes_in_bfloat16_and_keeps_float32_weights() -> None:
    full, half = make_loop(*CYCLIC), make_loop(*CYCLIC, "trainer.precision=bf16")
    with torch.no_grad():
        exact, rounded = full.forward(tensor_data(full).val.x), half.forward(tensor_data(half).val.x)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert not torch.equal(rounded, exact)
    losses, rough_losses = run(full).curve("val/loss"), run(half).curve("val/loss")
    assert_close(rough_losses, losses, rtol=0.05, atol=0)
    assert {weight.dtype for weight in half.model.state_dict().values()} == {torch.float32}


@pytest.mark.process
@pytest.mark.slow
def test_a_compiled_model_trains_like_the_plain_one() -> None:
    from torch._dynamo.utils import counters  # it takes a second to load

    one_shape = ("data.n=48", "split.val=0.25", "split.test=0.25", "trainer.batch_size=12")  # each one more to compile
    one_shape = (*one_shape, "model.widths=[]", "trainer.epochs=2")
    plain, compiled = make_loop(*one_shape), make_loop(*one_shape, "trainer.compile=true")
    n_compiled = counters["frames"]["ok"]
    assert_close(run(compiled).curve("val/loss"), run(plain).curve("val/loss"), rtol=1e-4, atol=1e-5)
    assert counters["frames"]["ok"] > n_compiled


@given(seed=st.integers(0, 2**40), epoch=st.integers(1, 1000), n=st.integers(12, 200))
def test_the_order_of_an_epoch_is_a_function_of_seed_and_epoch(seed: int, epoch: int, n: int) -> None:
    order = epoch_order(seed, epoch, n)
    torch.rand(1)  # what else is drawn does not matter
    assert torch.equal(epoch_order(seed, epoch, n), order)
    assert not torch.equal(epoch_order(seed, epoch + 1, n), order)
    assert not torch.equal(epoch_order(seed + 1, epoch, n), order)


@pytest.mark.parametrize("limit_bytes", [0, 2**20], ids=["indexed", "gathered"])
def test_the_batches_of_an_epoch_cover_each_sample_once(limit_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "_GATHER_LIMIT_BYTES", limit_bytes)
    for n, batch_size in [(68, 16), (64, 16), (5, 5), (7, 1), (9, 100)]:
        split = TensorSplit(torch.arange(n)[:, None] * 1.0, torch.arange(n)[:, None] * 2.0, None)
        seen = list(batches(split, epoch_order(0, 1, n), batch_size))
        assert [len(x) for x, _ in seen[:-1]] == [batch_size] * (math.ceil(n / batch_size) - 1)
        assert torch.equal(torch.cat([x for x, _ in seen]).flatten(), epoch_order(0, 1, n) * 1.0)
        assert all(torch.equal(y, 2 * x) for x, y in seen)
        for start in range(len(seen) + 1):
            rest = list(batches(split, epoch_order(0, 1, n), batch_size, start))
            assert [x.tolist() for x, _ in rest] == [x.tolist() for x, _ in seen[start:]]


def test_the_best_epoch_is_kept_and_its_weights_are_tested() -> None:
    fit = make_loop(*OVERSHOOTING)
    weights: list[dict[str, Tensor]] = []
    observed = run(fit, RecordingTrial(lambda epoch: weights.append(copy.deepcopy(fit.model.state_dict()))))
    values = observed.curve("val/loss")
    best = values.index(min(values))
    assert best < len(values) - 1, "the case needs a last epoch that is not the best"
    assert fit.best is not None
    assert (fit.best.epoch, fit.best.value) == (best + 1, values[best])
    assert_close(fit.best.weights, dict(weights[best]), rtol=0, atol=0)
    reference = make_loop(*OVERSHOOTING).model
    reference.load_state_dict(weights[best])
    with torch.no_grad():
        expected = functional.mse_loss(reference(tensor_data(fit).test.x), tensor_data(fit).test.y).item()
    assert fit.test(noise=0.1)["test/loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("patience", "min_delta"), [(1, 0.0), (2, 0.0), (2, 0.05), (4, 0.2)])
def test_early_stopping_counts_epochs_without_a_better_value(patience: int, min_delta: float) -> None:
    values = run(make_loop(*OVERSHOOTING)).curve("val/loss")
    bar, waited, expected = math.inf, 0, 0
    for value in values:
        expected += 1
        if value < bar - min_delta:
            bar, waited = value, 0
        else:
            waited += 1
        if waited == patience:
            break
    fit = make_loop(*OVERSHOOTING, f"trainer.patience={patience}", f"trainer.min_delta={min_delta}")
    stopped = run(fit).curve("val/loss")
    assert 0 < len(stopped) < len(values), "the case needs a run that stops early"
    assert stopped == values[:expected]
    assert fit.best is not None
    assert fit.best.value == min(stopped)


@pytest.mark.parametrize("sync_every", [1, 7, 50])
def test_divergence_stops_at_its_step_and_tells_the_losses_before(
    sync_every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = make_loop(
        "optimizer=sgd", "scheduler=constant", "optimizer.lr=100", "model.widths=[]", "trainer.batch_size=4"
    )
    monkeypatch.setattr(fit, "_sync_every", sync_every)  # more than 1 on a GPU
    model, losses = copy.deepcopy(fit.model), []
    order = epoch_order(0, 1, 68)
    while not losses or math.isfinite(losses[-1]):
        rows = order[4 * len(losses) :][:4]
        loss = functional.mse_loss(model(tensor_data(fit).train.x[rows]), tensor_data(fit).train.y[rows])
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in model.parameters():
                assert weight.grad is not None
                weight -= 100 * weight.grad
        losses.append(loss.item())
    assert 7 < len(losses) < 14, "the case needs to diverge in the second group of 7"
    observed = RecordingTrial()
    with pytest.raises(Diverged) as caught:
        run(fit, observed)
    assert (caught.value.metric, caught.value.step, caught.value.lr) == ("train/loss", len(losses), 100)
    assert not math.isfinite(caught.value.value)
    message = [loss for loss, _ in observed.points.values()]
    assert list(observed.points) == list(range(1, len(losses)))
    assert_close(message, losses[:-1], rtol=1e-4, atol=0)
    assert observed.epochs == {}


@pytest.mark.parametrize(("sync_every", "n_told"), [(1, 13), (5, 12)])
def test_an_error_inside_the_model_tells_the_losses_before(
    sync_every: int, n_told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In update 14, the last of the second epoch."""
    fit, expected = make_loop("trainer.batch_size=10"), run(make_loop("trainer.batch_size=10"))
    monkeypatch.setattr(fit, "_sync_every", sync_every)  # more than 1 on a GPU

    n_updates = 0

    def fail(module: nn.Module, inputs: object) -> None:
        nonlocal n_updates
        n_updates += module.training
        if n_updates == 14:
            raise MemoryError

    fit.model.register_forward_pre_hook(fail)
    observed = RecordingTrial()
    with pytest.raises(TrainingFailed, match="step 14: MemoryError") as caught:
        run(fit, observed)
    assert isinstance(caught.value.__cause__, MemoryError)
    assert observed.points == dict(list(expected.points.items())[:n_told])


def test_weights_that_explode_after_the_last_update_are_found_by_validation() -> None:
    fit = make_loop("optimizer=sgd", "scheduler=constant", "optimizer.lr=1e25", "trainer.batch_size=68")
    observed = RecordingTrial()
    with pytest.raises(Diverged, match="val/loss") as caught:
        run(fit, observed)
    assert (caught.value.step, caught.value.lr) == (1, 1e25)
    assert list(observed.points) == [1]
    assert observed.epochs == {}


def stop_after(fit: TrainingLoop, step: int) -> StopRequest:
    """A request made while update number `step` is in progress, as a signal would."""
    stop, n_seen = StopRequest(), fit.step

    def count(module: nn.Module, inputs: object) -> None:
        nonlocal n_seen
        n_seen += module.training
        if n_seen == step:
            stop.signum = signal.SIGTERM

    fit.model.register_forward_pre_hook(count)
    return stop


def run_in_two(overrides: tuple[str, ...], step: int, path: Path) -> tuple[TrainingLoop, RecordingTrial]:
    """Stopped in update `step`, and continued by a new TrainingLoop from the checkpoint file alone."""
    observed, first = RecordingTrial(), make_loop(*overrides)
    with pytest.raises(Interrupted) as caught:
        first.run(
            RecordingTrial.again(
                observed, stop=stop_after(first, step), on_save=lambda state: checkpoint.save(path, {**state})
            )
        )
    assert caught.value.signum == signal.SIGTERM
    assert first.step == step
    second = make_loop(*overrides)
    with torch.no_grad():
        for weight in second.model.parameters():
            weight.uniform_()
    second.load_state_dict(checkpoint.load(path))
    return second, run(second, observed)


def assert_same(
    fit: TrainingLoop, observed: RecordingTrial, complete: TrainingLoop, complete_observed: RecordingTrial
) -> None:
    """Bit for bit."""
    assert (observed.points, observed.epochs) == (complete_observed.points, complete_observed.epochs)
    for name, weight in complete.model.state_dict().items():
        assert torch.equal(fit.model.state_dict()[name], weight), name
    assert fit.best is not None
    assert complete.best is not None
    assert (fit.best.epoch, fit.best.value) == (complete.best.epoch, complete.best.value)
    assert fit.test(noise=0.1) == complete.test(noise=0.1)


@pytest.mark.parametrize("step", [1, 5, 7, 10, 19, 20])
def test_a_stop_at_any_update_changes_nothing(step: int, tmp_path: Path) -> None:
    complete = make_loop(*CYCLIC, "model.dropout=0.3")  # updates 5, 10, 15 and 20 end an epoch
    complete_observed = run(complete)
    fit, observed = run_in_two((*CYCLIC, "model.dropout=0.3"), step, tmp_path / "checkpoint.pt")
    assert_same(fit, observed, complete, complete_observed)


def test_the_best_epoch_so_far_survives_a_stop(tmp_path: Path) -> None:
    complete = make_loop(*OVERSHOOTING)
    complete_observed = run(complete)
    assert complete.best is not None
    assert complete.best.epoch < 11, "the case needs its best epoch before the stop, in epoch 11"
    fit, observed = run_in_two(OVERSHOOTING, 53, tmp_path / "checkpoint.pt")
    assert_same(fit, observed, complete, complete_observed)


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer=momentum", "scheduler=onecycle"),
        ("optimizer=sgd", "scheduler=plateau", "scheduler.patience=0", "optimizer.lr=0.5"),
        ("optimizer=radam", "scheduler=cosine_restarts"),
        ("optimizer=adamw", "scheduler=exponential", "trainer.precision=bf16"),
        ("optimizer=rmsprop", "scheduler=warmup_cosine", "trainer.clip_norm=0.1"),
        ("optimizer=sgd", "scheduler=cyclic_exp_range", "trainer.patience=1", "trainer.min_delta=0.3"),
    ],
    ids=lambda overrides: "-".join(o.partition("=")[2] for o in overrides[:2]),
)
def test_every_optimizer_and_scheduler_resumes_bit_for_bit(overrides: tuple[str, ...], tmp_path: Path) -> None:
    overrides = (*overrides, "model.dropout=0.3")
    complete = make_loop(*overrides)
    complete_observed = run(complete)
    fit, observed = run_in_two(overrides, 8, tmp_path / "checkpoint.pt")
    assert_same(fit, observed, complete, complete_observed)
