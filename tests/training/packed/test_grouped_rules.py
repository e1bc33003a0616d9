"""sweep/training/packed/grouped_rules.py: a packed trial whose groups of weights have values of their own."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from conftest import RecordingTrial, make_loop
from packs import (
    CYCLIC,
    Odd,
    Stop,
    alone,
    assert_close,
    both_ways,
    cycling_momentum,
    half_trained,
    in_float64,
    member_of,
    pack_of,
    rules_of,
    seeded,
    stop_after_2,
    together,
)
from torch import nn

from sweep.training import checkpoint
from sweep.training.packed.member import PackMember

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float64")]


def groups(**values: str) -> str:
    """Values of their own for biases, and a smaller learning rate for the first layer."""
    own = ", ".join(f"{name}: {value}" for name, value in {"lr_scale": "3", **values}.items())
    return f"optimizer.groups={{*.bias: {{{own}}}, layers.0.*: {{lr_scale: 0.1}}}}"


KINDS = {
    "sgd": ("optimizer=sgd", groups(momentum="0.5")),
    "momentum": ("optimizer=momentum", "+optimizer.dampening=0.2", groups(momentum="0", dampening="0.3")),
    "nesterov": ("optimizer=nesterov", groups(nesterov="false", momentum="0.3")),
    "adam": ("optimizer=adam", "optimizer.weight_decay=1e-2", groups(betas="[0.5, 0.9]", weight_decay="0")),
    "adam-amsgrad": ("optimizer=adam", "+optimizer.amsgrad=true", groups(amsgrad="false", eps="1e-3")),
    "adamw": ("optimizer=adamw", "optimizer.weight_decay=0.1", "optimizer.no_decay=norm_and_bias", groups()),
    "rmsprop": ("optimizer=rmsprop", "optimizer.momentum=0.5", groups(momentum="0", centered="true")),
    "adagrad": ("optimizer=adagrad", groups(lr_decay="1e-2", initial_accumulator_value="0.1")),
    "nadam": ("optimizer=nadam", groups(momentum_decay="0.1", betas="[0.5, 0.9]")),
    "radam": ("optimizer=radam", groups(betas="[0.5, 0.8]", weight_decay="1e-2")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_80_steps_with_groups_are_those_of_each_trial_alone(kind: str) -> None:
    overrides = [
        (*KINDS[kind], *CYCLIC, "trainer.epochs=16", f"scheduler.max_lr={lr}", f"seed={seed}")
        for seed, lr in enumerate((1e-2, 5e-3, 1.5e-2))
    ]
    _, _, expected = both_ways(*overrides, make=in_float64, rtol=1e-9, width=2)
    plain = alone(in_float64(*overrides[0], "optimizer.groups=null"))
    assert expected[0].points[40][0] != plain.points[40][0], "the case needs groups that matter"


SCHEDULES = {
    "plateau": ("optimizer=momentum", "scheduler=plateau", "scheduler.patience=0", groups(momentum="0.5")),
    "onecycle, which cycles the momentum": ("optimizer=momentum", "scheduler=onecycle", groups(weight_decay="0.1")),
    "a momentum that reaches 0": (*cycling_momentum("momentum", 3), groups(dampening="0.5")),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules_act_on_all_groups_in_proportion(kind: str) -> None:
    overrides = [(*SCHEDULES[kind], f"seed={seed}", "trainer.epochs=6") for seed in (1, 2)]
    both_ways(*overrides, make=in_float64, rtol=1e-9)


def test_gradients_are_clipped_by_the_norm_over_all_groups() -> None:
    more = ("optimizer=momentum", "trainer.clip_value=0.1", groups())
    overrides = [(*own, *more, f"trainer.clip_norm={norm}") for own, norm in zip(seeded(), (0.05, 0.5, 1), strict=True)]
    both_ways(*overrides, make=in_float64, rtol=1e-9)


ODD = "optimizer.groups={again.*: {lr_scale: 0.5}, frozen.*: {weight_decay: 0.1}, gain: {weight_decay: 0.2}}"


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "adagrad"])
def test_weights_of_groups_may_be_frozen_tied_or_unused(optimizer: str) -> None:
    overrides = [(f"optimizer={optimizer}", ODD, *own) for own in seeded()]
    both_ways(*overrides, make=partial(in_float64, make_model=Odd), rtol=1e-9, width=2)


@pytest.mark.process
def test_a_compiled_pack_has_groups_too() -> None:
    own = ("optimizer=adamw", groups(betas="[0.5, 0.9]", weight_decay="0"), "model.widths=[4]")
    overrides = [(*own, *CYCLIC, f"seed={seed}") for seed in range(2)]
    expected = [alone(in_float64(*one)) for one in overrides]
    fits = [in_float64(*one, "trainer.compile=true") for one in overrides]
    placed = [member_of(loop) for loop in fits]
    together(pack_of(fits[0]), [member for member, _ in placed])
    for (_, observed), one in zip(placed, expected, strict=True):
        assert_close(observed, one, rtol=1e-9)


RESUMED = [
    (KINDS["momentum"], None),
    (KINDS["nadam"], None),
    (KINDS["rmsprop"], None),
    (SCHEDULES["a momentum that reaches 0"], None),
    (("optimizer=adam", ODD), Odd),
]


@pytest.mark.parametrize(("kind", "model"), RESUMED, ids=[kind[0] for kind, _ in RESUMED])
def test_a_trial_with_groups_moves_out_of_a_pack_and_into_another_at_a_checkpoint(
    kind: tuple[str, ...], model: Callable[[], nn.Module] | None, tmp_path: Path
) -> None:
    make = partial(in_float64, make_model=model)
    overrides = [(*kind, f"seed={seed}", "trainer.epochs=4") for seed in range(2)]
    pack, placed, expected = half_trained(overrides, make)
    again: list[PackMember] = []
    for i, (member, observed) in enumerate(placed):
        checkpoint.save(tmp_path / f"{i}.pt", pack.state_dict(member))
        loop = make(*overrides[i])  # goes on alone
        loop.load_state_dict(checkpoint.load(tmp_path / f"{i}.pt"))
        loop.run(observed)
        assert_close(observed, expected[i], rtol=1e-9)
        later, in_a_pack = member_of(make(*overrides[i]))  # and in another pack
        in_a_pack.points = dict([*observed.points.items()][: member.step])
        in_a_pack.epochs = {epoch: observed.epochs[epoch] for epoch in (1, 2)}
        pack.load_state_dict(later, checkpoint.load(tmp_path / f"{i}.pt"))
        again.append(later)
    together(pack_of(make(*overrides[0])), again)
    for later, one in zip(again, expected, strict=True):
        assert_close(later.trial, one, rtol=1e-9)  # pyright: ignore[reportArgumentType]
    loop, observed = make(*overrides[0]), RecordingTrial(stop_after_2)
    with pytest.raises(Stop):  # from alone into a pack
        loop.run(observed)
    member, later = member_of(make(*overrides[0]))
    later.points, later.epochs = observed.points, observed.epochs
    checkpoint.save(tmp_path / "alone.pt", loop.state_dict())
    pack.load_state_dict(member, checkpoint.load(tmp_path / "alone.pt"))
    together(pack_of(make(*overrides[0])), [member])
    assert_close(later, expected[0], rtol=1e-9)


def test_trials_share_a_pack_if_their_groups_differ_in_numbers_only() -> None:
    base = "optimizer=adamw"
    first, number, structure, weights = (
        rules_of(make_loop(base, own))
        for own in (
            groups(weight_decay="0.1"),
            groups(weight_decay="0.2"),
            groups(weight_decay="0"),
            "optimizer.groups={layers.2.bias: {lr_scale: 3, weight_decay: 0.1}, layers.0.*: {lr_scale: 0.1}}",
        )
    )
    assert first == number
    assert hash(first) == hash(number)
    assert structure != first != weights
