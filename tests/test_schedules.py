import functools
import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sweep import ConfigError
from sweep.config.nodes import LrBounds
from sweep.config.options import CONF_DIR
from sweep.schedules import n_steps
from sweep.training.schedule import Row, Schedule
from sweep.trial import build
from sweep.utils.errors import TrainingFailed

OPTIONS = sorted(path.stem for path in (CONF_DIR / "scheduler").glob("*.yaml"))
ADAM = {"_target_": "torch.optim.Adam", "lr": 1e-2}
SGD = {"_target_": "torch.optim.SGD", "lr": 1e-1, "momentum": 0.9}
# Cycles the momentum too, and asks for `steps_per_epoch` and `epochs`.
TORCH_ONECYCLE = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1, "interval": "step"}


@functools.cache
def _node(option: str) -> dict[str, Any]:
    file = OmegaConf.load(CONF_DIR / "scheduler" / f"{option}.yaml").scheduler
    root: Any = OmegaConf.to_container(OmegaConf.create({"lr_bounds": vars(LrBounds()), "node": file}), resolve=True)
    return root["node"]


def node(option: str, **changes: Any) -> dict[str, Any]:
    """The config of an option, with `changes`."""
    return {**_node(option), **changes}


def make_schedule(optimizer: Mapping[str, Any], scheduler: Mapping[str, Any], per_epoch: int, epochs: int) -> Schedule:
    make_scheduler = build.scheduler(scheduler, per_epoch, epochs)
    return Schedule(build.optimizer(optimizer, torch.nn.Linear(1, 1)), make_scheduler, build.interval(scheduler))


def rows_of_epochs(schedule: Schedule, per_epoch: int, values: list[float]) -> list[list[Row]]:
    """Goes on for as many epochs as there are validation `values`, the way the training loop does."""
    epochs = []
    for value in values:
        schedule.start_epoch(per_epoch)
        epochs.append(schedule.rows)
        schedule.end_epoch(value)
    return epochs


def lr_curve(
    optimizer: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    per_epoch: int,
    epochs: int,
    value: Callable[[int], float] = lambda epoch: 1 / (1 + epoch),
) -> list[float]:
    """The learning rate of every update of a run."""
    schedule = make_schedule(optimizer, scheduler, per_epoch, epochs)
    by_epoch = rows_of_epochs(schedule, per_epoch, [value(epoch) for epoch in range(epochs)])
    assert [len(rows) for rows in by_epoch] == [per_epoch] * epochs
    return [row[0]["lr"] for rows in by_epoch for row in rows]


# The study's rule, written from the formula


def cyclic_lr(step: int, cycle_steps: int, base_lr: float, max_lr: float) -> float:
    """Of the update that follows `step` others."""
    half = cycle_steps / 2
    cycle_progress = abs(step % cycle_steps - half) / half  # 1 at a cycle's ends, 0 at its peak
    return base_lr + (max_lr - base_lr) * (1 - cycle_progress)


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize(
    ("per_epoch", "cycle_epochs", "cycle_steps"),
    [(7, 4, 28), (7, 3, 21), (10, 2.5, 25), (6, "25%", 18), (1, 2, 2)],
    ids=["even", "odd", "part of an epoch", "share of the run", "an update an epoch"],
)
def test_cyclic_follows_the_formula_at_every_step(optimizer, per_epoch: int, cycle_epochs, cycle_steps: int):
    epochs = 12
    bounds = {"base_lr": 2e-4, "max_lr": 3e-2}
    curve = lr_curve(optimizer, node("cyclic", cycle_epochs=cycle_epochs, **bounds), per_epoch, epochs)
    formula = [cyclic_lr(step, cycle_steps, **bounds) for step in range(per_epoch * epochs)]
    assert curve == pytest.approx(formula, rel=1e-9)
    if cycle_steps % 2 == 0:
        assert max(curve) == pytest.approx(3e-2)
    assert min(curve) == pytest.approx(2e-4)


def test_triangular2_halves_the_amplitude_after_each_cycle():
    curve = lr_curve(ADAM, node("cyclic_triangular2", base_lr=1e-3, max_lr=9e-3, cycle_epochs=2), 10, 6)
    formula = [1e-3 + (cyclic_lr(step, 20, 1e-3, 9e-3) - 1e-3) / 2 ** (step // 20) for step in range(60)]
    assert curve == pytest.approx(formula, rel=1e-9)


def test_exp_range_decays_the_amplitude_by_gamma_an_epoch():
    curve = lr_curve(ADAM, node("cyclic_exp_range", base_lr=1e-3, max_lr=9e-3, cycle_epochs=2, gamma=0.8), 10, 6)
    formula = [1e-3 + (cyclic_lr(step, 20, 1e-3, 9e-3) - 1e-3) * 0.8 ** (step / 10) for step in range(60)]
    assert curve == pytest.approx(formula, rel=1e-9)


# The other options, by what a user reads off their curve


def test_constant_keeps_the_optimizers_learning_rate():
    assert lr_curve(ADAM, node("constant"), 5, 4) == [1e-2] * 20


def test_cosine_falls_by_half_a_cosine_then_stays():
    curve = lr_curve(ADAM, node("cosine", decay_epochs="50%", min_lr=1e-3), 10, 8)
    formula = [1e-3 + 9e-3 * (1 + math.cos(math.pi * min(step / 40, 1))) / 2 for step in range(80)]
    assert curve == pytest.approx(formula)


def test_warmup_cosine_rises_in_a_line_then_falls_to_the_end():
    curve = lr_curve(ADAM, node("warmup_cosine", warmup_epochs=2, min_lr=1e-3), 5, 10)
    assert curve[:10] == pytest.approx([1e-2 * (step + 1) / 10 for step in range(10)])
    assert curve[10:] == pytest.approx([1e-3 + 9e-3 * (1 + math.cos(math.pi * s / 40)) / 2 for s in range(40)])


def test_cosine_restarts_begins_each_longer_cycle_at_the_top():
    curve = lr_curve(ADAM, node("cosine_restarts", cycle_epochs=2, cycle_mult=2), 5, 14)
    assert [step for step, lr in enumerate(curve) if lr == pytest.approx(1e-2)] == [0, 10, 30]
    assert curve[1:10] == sorted(curve[1:10], reverse=True)


def test_step_multiplies_by_gamma_after_every_length():
    curve = lr_curve(ADAM, node("step", step_epochs=2, gamma=0.5), 5, 6)
    assert curve == pytest.approx([1e-2] * 10 + [5e-3] * 10 + [2.5e-3] * 10)


def test_exponential_multiplies_by_gamma_after_every_epoch():
    curve = lr_curve(ADAM, node("exponential", gamma=0.9), 3, 4)
    assert curve == pytest.approx([1e-2 * 0.9**epoch for epoch in range(4) for _ in range(3)])


def test_onecycle_rises_to_the_bound_and_ends_far_below_its_start():
    curve = lr_curve(ADAM, node("onecycle", max_lr=0.1, pct_start=0.25, div_factor=10, final_div_factor=100), 10, 8)
    assert curve[0] == pytest.approx(0.01)
    peak = curve.index(max(curve))
    assert curve[peak] == pytest.approx(0.1)
    assert peak == pytest.approx(20, abs=1)
    assert curve[-1] == pytest.approx(0.01 / 100)
    assert curve[: peak + 1] == sorted(curve[: peak + 1])
    assert curve[peak:] == sorted(curve[peak:], reverse=True)


def test_plateau_lowers_the_learning_rate_only_when_the_value_stops_falling():
    plateau = node("plateau", patience=2, factor=0.5)
    assert lr_curve(ADAM, plateau, 2, 10, value=lambda epoch: 1 - epoch / 20) == [1e-2] * 20
    stuck = lr_curve(ADAM, plateau, 2, 8, value=lambda epoch: 1.0)
    # Epoch 1 sets the best; 2 and 3 are forgiven; after 4 it acts, and after 3 more again.
    assert stuck == pytest.approx([1e-2] * 8 + [5e-3] * 6 + [2.5e-3] * 2)


# What holds for every option


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("per_epoch", "epochs"), [(13, 20), (3, 2), (1, 11)])
@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
def test_learning_rates_stay_finite_and_within_their_bounds(optimizer, option: str, per_epoch: int, epochs: int):
    scheduler = node(option)
    curve = lr_curve(optimizer, scheduler, per_epoch, epochs)
    top = scheduler.get("max_lr", optimizer["lr"])
    assert all(math.isfinite(lr) and 0 <= lr <= top * (1 + 1e-9) for lr in curve)
    assert max(curve) > top / 5  # it does train


@pytest.mark.parametrize("option", OPTIONS)
def test_a_schedule_looks_the_same_over_the_epochs_whatever_the_batch_size(option: str):
    at_epochs = [lr_curve(ADAM, node(option), per_epoch, epochs=20)[::per_epoch] for per_epoch in (50, 100)]
    one_step = 0.01 * max(at_epochs[0])  # where a warm-up stands after its first update
    assert at_epochs[0] == pytest.approx(at_epochs[1], abs=one_step)


LENGTHS = {
    "cyclic": "cycle_epochs",
    "cyclic_triangular2": "cycle_epochs",
    "cyclic_exp_range": "cycle_epochs",
    "cosine": "decay_epochs",
    "cosine_restarts": "cycle_epochs",
    "warmup_cosine": "warmup_epochs",
    "step": "step_epochs",
}


@pytest.mark.parametrize(("option", "name"), LENGTHS.items())
def test_a_length_may_be_epochs_or_a_share_of_the_run(option: str, name: str):
    in_epochs, share = (lr_curve(ADAM, node(option, **{name: length}), 10, 20) for length in (5, "25%"))
    assert in_epochs == share
    assert in_epochs != lr_curve(ADAM, node(option, **{name: 4}), 10, 20)


@pytest.mark.parametrize(("option", "name"), LENGTHS.items())
@pytest.mark.parametrize("length", [0, -1, "0%", "-5%", "abc", "5 %%", "", math.inf, math.nan])
def test_a_length_that_is_none_is_refused(option: str, name: str, length: Any):
    with pytest.raises(ConfigError, match=f"scheduler.{name}: {name} must be a number of epochs > 0, or a share"):
        make_schedule(ADAM, node(option, **{name: length}), 10, 20)


def test_a_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(ConfigError, match="warmup_epochs = 100% fills the whole run of 20 epochs; shorten it"):
        make_schedule(ADAM, node("warmup_cosine", warmup_epochs="100%"), 10, 20)


@settings(deadline=None)
@given(per_epoch=st.integers(1, 500), epochs=st.integers(1, 500), length=st.floats(0.01, 1000))
def test_a_length_in_steps_is_the_nearest_whole_number_and_at_least_one(per_epoch: int, epochs: int, length: float):
    steps = n_steps("length", length, per_epoch, epochs)
    assert steps >= 1
    assert steps == 1 or abs(steps - length * per_epoch) <= 0.5
    assert n_steps("length", f"{length}%", per_epoch, epochs) == pytest.approx(
        max(1, length / 100 * epochs * per_epoch), abs=0.5 + 1e-6
    )


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("scheduler", [*OPTIONS, TORCH_ONECYCLE], ids=[*OPTIONS, "torch's onecycle"])
def test_a_schedule_equals_its_scheduler_stepped_by_hand_beside_an_optimizer(optimizer, scheduler):
    scheduler = node(scheduler) if isinstance(scheduler, str) else scheduler
    per_epoch, epochs = 4, 9
    values = [1.0, 0.9, *[0.95] * 7]  # long enough to wake a plateau
    weight = torch.nn.Parameter(torch.ones(3))
    real = build.optimizer(optimizer, torch.nn.ParameterList([weight]))
    by_hand: Any = build.scheduler(scheduler, per_epoch, epochs)(real)  # `step` takes a value or none
    by_step = scheduler["interval"] == "step"
    by_value = scheduler["_target_"].endswith("ReduceLROnPlateau")
    seen = []
    for value in values:
        for _ in range(per_epoch):
            group = real.param_groups[0]
            seen.append({key: group[key] for key in ("lr", "momentum", "betas") if key in group})
            weight.grad = torch.ones(3)
            real.step()
            if by_step and len(seen) < per_epoch * epochs:
                by_hand.step()
        if not by_step:
            by_hand.step(*([value] if by_value else []))
    schedule = make_schedule(optimizer, scheduler, per_epoch, epochs)
    rows = [row for rows in rows_of_epochs(schedule, per_epoch, values) for row in rows]
    assert rows == [[values] for values in seen]


def test_a_scheduler_that_cycles_the_momentum_changes_it_too():
    sgd = make_schedule(SGD, TORCH_ONECYCLE, 10, 4)
    momenta = [row[0]["momentum"] for rows in rows_of_epochs(sgd, 10, [1.0] * 4) for row in rows]
    assert (momenta[0], min(momenta), momenta[-1]) == pytest.approx((0.95, 0.85, 0.95))


@pytest.mark.parametrize("scheduler", [*OPTIONS, TORCH_ONECYCLE], ids=[*OPTIONS, "torch's onecycle"])
@pytest.mark.parametrize("within_an_epoch", [False, True])
def test_a_schedule_goes_on_identically_from_a_saved_state(scheduler, within_an_epoch: bool):
    scheduler = node(scheduler) if isinstance(scheduler, str) else scheduler
    per_epoch, values = 4, [1.0, 0.9, *[0.95] * 12]
    stopped, resumed, uninterrupted = (make_schedule(ADAM, scheduler, per_epoch, len(values)) for _ in range(3))
    expected = rows_of_epochs(uninterrupted, per_epoch, values)
    done = 8  # the plateau has begun to count
    rows_of_epochs(stopped, per_epoch, values[:done])
    if within_an_epoch:
        stopped.start_epoch(per_epoch)

    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))

    if within_an_epoch:
        assert resumed.rows == expected[done]
        resumed.end_epoch(values[done])
        done += 1
    assert rows_of_epochs(resumed, per_epoch, values[done:]) == expected[done:]


def test_an_optimizer_may_group_the_weights_as_it_likes():
    model = torch.nn.Linear(3, 2)

    def without_decay_for_biases(parameters: Any) -> torch.optim.Optimizer:
        weights = list(parameters)
        matrices, vectors = ([w for w in weights if (w.ndim > 1) == wide] for wide in (True, False))
        return torch.optim.SGD([{"params": matrices, "lr": 0.4}, {"params": vectors, "lr": 0.2}])

    halving = build.scheduler(node("exponential", gamma=0.5), 1, 3)
    schedule = Schedule(without_decay_for_biases(model.parameters()), halving, "epoch")
    rows = [row for rows in rows_of_epochs(schedule, 1, [1.0] * 3) for row in rows]
    assert [[group["lr"] for group in row] for row in rows] == [[0.4, 0.2], [0.2, 0.1], [0.1, 0.05]]


def test_a_saved_state_is_unmoved_by_what_the_schedule_does_next():
    schedule = make_schedule(ADAM, node("cosine"), 4, 3)
    schedule.start_epoch(4)
    state = schedule.state_dict()
    before = repr(state)
    schedule.end_epoch(1.0)
    schedule.start_epoch(4)
    assert repr(state) == before


def test_a_negative_learning_rate_is_refused_before_it_is_used():
    node = {"_target_": "torch.optim.lr_scheduler.LinearLR", "start_factor": 1.0, "end_factor": 0.0, "total_iters": 4}
    schedule = make_schedule(ADAM, node | {"interval": "epoch"}, 4, 2)
    schedule.start_epoch(4)
    for group in schedule.optimizer.param_groups:
        group["lr"] = -1e-3
    with pytest.raises(TrainingFailed, match="sets a learning rate of -"):
        schedule.start_epoch(4)
