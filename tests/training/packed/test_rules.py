"""sweep/training/packed/rules.py: a stacked update is torch's own, trial by trial."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from sweep.testing import check_packed_rule
from sweep.training.packed.rule import Rule
from sweep.training.packed.rules import rule_of
from sweep.utils.errors import TrainingFailed

pytestmark = pytest.mark.usefixtures("float64")

N_UPDATES = 12

numbers = st.floats  # of a hyperparameter
BETAS = st.tuples(numbers(0.0, 0.95), numbers(0.5, 0.9999))
EPS = numbers(1e-10, 1e-2)
DECAY = numbers(1e-4, 0.3)


@dataclass(frozen=True)
class Kind:
    """What is drawn. flags: alike in all trials. numbers: of each trial. optional: likewise, or 0 in all of them."""

    made_by: type[Optimizer]
    flags: tuple[str, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    optional: Mapping[str, Any] = field(default_factory=lambda: {"weight_decay": DECAY})
    scheduled: str | None = None  # besides the learning rate
    from_zero: bool = True  # whether torch lets the momentum rise from 0


KINDS = {
    "sgd": Kind(
        SGD,
        numbers={"dampening": numbers(0.0, 0.9)},
        optional={"weight_decay": DECAY, "momentum": numbers(0.1, 0.99)},
        scheduled="momentum",
    ),
    "nesterov": Kind(
        SGD, optional={"weight_decay": DECAY}, numbers={"momentum": numbers(0.1, 0.99)}, scheduled="momentum"
    ),
    "adam": Kind(Adam, ("amsgrad", "decoupled_weight_decay"), numbers={"betas": BETAS, "eps": EPS}, scheduled="betas"),
    "adamw": Kind(AdamW, ("amsgrad",), numbers={"betas": BETAS, "eps": EPS}, scheduled="betas"),
    "rmsprop": Kind(
        RMSprop,
        ("centered",),
        numbers={"alpha": numbers(0.3, 0.999), "eps": EPS},
        optional={"weight_decay": DECAY, "momentum": numbers(0.1, 0.99)},
        scheduled="momentum",
        from_zero=False,
    ),
    "adagrad": Kind(
        Adagrad, numbers={"lr_decay": numbers(0.0, 0.5), "initial_accumulator_value": numbers(0.0, 2.0), "eps": EPS}
    ),
    "nadam": Kind(
        NAdam,
        ("decoupled_weight_decay",),
        numbers={"betas": BETAS, "eps": EPS, "momentum_decay": numbers(1e-3, 0.5)},
        scheduled="betas",
    ),
    "radam": Kind(RAdam, ("decoupled_weight_decay",), numbers={"betas": BETAS, "eps": EPS}, scheduled="betas"),
}


@st.composite
def trials(draw: st.DrawFn, kind: Kind) -> tuple[list[dict[str, Any]], bool]:
    """Arguments of several optimizers that may share a pass; and whether more than the learning rate is scheduled."""
    flags = {name: draw(st.booleans(), label=name) for name in ("maximize", *kind.flags)}
    if kind is KINDS["nesterov"]:
        flags["nesterov"] = True
    used = [name for name in kind.optional if draw(st.booleans(), label=f"uses {name}")]
    varied = {**kind.numbers, **{name: kind.optional[name] for name in used}}
    rest = {name: 0 for name in kind.optional if name not in used}
    arguments = [
        {"lr": 0.1, **flags, **rest, **{name: draw(numbers, label=name) for name, numbers in varied.items()}}
        for _ in range(draw(st.integers(2, 4), label="trials"))
    ]
    schedules = kind.scheduled is not None and kind.scheduled in varied and draw(st.booleans(), label="scheduled")
    return arguments, schedules


class Alone:
    """A trial in torch's own hands."""

    def __init__(self, kind: Kind, arguments: dict[str, Any], weights: Tensor) -> None:
        self.weights = nn.Parameter(weights.clone())
        self.optimizer = kind.made_by([self.weights], **arguments)

    def update(self, gradient: Tensor, scheduled: Mapping[str, Any]) -> None:
        self.optimizer.param_groups[0].update(scheduled)
        self.weights.grad = gradient.clone()
        self.optimizer.step()

    @property
    def state(self) -> dict[str, Any]:
        return self.optimizer.state[self.weights]


def schedule(kind: Kind, group: Mapping[str, Any], more: bool, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Other values in each update."""
    rows: list[dict[str, Any]] = [{"lr": float(lr)} for lr in 10 ** rng.uniform(-4, -0.5, N_UPDATES)]
    for row in rows:
        if kind.scheduled == "betas":
            row["betas"] = (rng.uniform(0, 0.95), rng.uniform(0.5, 0.999)) if more else group["betas"]
        elif "momentum" in group:
            row["momentum"] = rng.uniform(0.1, 0.99) * rng.integers(0, 2) if more else group["momentum"]
            if more:
                row["weight_decay"] = rng.uniform(0.0, 0.3) * rng.integers(0, 2)
    if more and not kind.from_zero:
        rows[0]["momentum"] = 0.5
    return rows


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=25)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_stacked_updates_are_torchs_own_trial_by_trial(name: str, data: st.DataObject, seed: int) -> None:
    kind, rng = KINDS[name], np.random.default_rng(seed)
    arguments, more = data.draw(trials(kind))
    groups = [kind.made_by([nn.Parameter(torch.zeros(1))], **own).param_groups[0] for own in arguments]
    schedules = [schedule(kind, group, more, rng) for group in groups] if more else None
    check_packed_rule(kind.made_by, arguments, schedules, seed=seed)


def rule(made_by: type[Optimizer], **arguments: Any) -> Rule:
    found = rule_of(made_by([nn.Parameter(torch.zeros(1))], **{"lr": 0.1, **arguments}))
    assert found is not None
    return found


# Per line: an optimizer, what may differ within a pass, and what may not.
APART: list[tuple[type[Optimizer], dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    (SGD, {"momentum": 0.5}, {"lr": 0.2, "momentum": 0.9, "dampening": 0.3}, {"nesterov": True}),
    (SGD, {}, {"lr": 0.2}, {"momentum": 0.5}),
    (Adam, {}, {"betas": (0.8, 0.9), "eps": 1e-3}, {"amsgrad": True}),
    (Adam, {"weight_decay": 0.1}, {"weight_decay": 0.2}, {"decoupled_weight_decay": True}),
    (AdamW, {}, {"weight_decay": 0.2}, {"weight_decay": 0}),
    (RMSprop, {}, {"alpha": 0.5, "eps": 1e-3}, {"centered": True}),
    (RMSprop, {}, {"alpha": 0.5}, {"momentum": 0.5}),
    (NAdam, {"weight_decay": 0.1}, {"momentum_decay": 0.1}, {"decoupled_weight_decay": True}),
    (RAdam, {"weight_decay": 0.1}, {"betas": (0.8, 0.9)}, {"decoupled_weight_decay": True}),
    (Adagrad, {}, {"lr_decay": 0.1, "initial_accumulator_value": 0.5}, {"weight_decay": 0.1}),
    *((made_by, {}, {"lr": 0.2}, {"maximize": True}) for made_by in (SGD, Adam, AdamW, RMSprop, NAdam, RAdam, Adagrad)),
]


@pytest.mark.parametrize(("made_by", "common", "number", "structure"), APART)
def test_trials_share_a_pass_when_they_differ_in_numbers_only(
    made_by: type[Optimizer], common: dict[str, Any], number: dict[str, Any], structure: dict[str, Any]
) -> None:
    one = rule(made_by, **common)
    assert one == rule(made_by, **common | number)
    assert hash(one) == hash(rule(made_by, **common | number))
    assert one != rule(made_by, **common | structure)


def test_optimizers_of_different_kinds_do_not_share_a_pass() -> None:
    made = [rule(made_by, weight_decay=0.1) for made_by in (SGD, Adam, AdamW, RMSprop, NAdam, RAdam, Adagrad)]
    assert len(set(made)) == len(made)
    assert rule(Adam, weight_decay=0.1, decoupled_weight_decay=True) == rule(AdamW, weight_decay=0.1)


@pytest.mark.parametrize("made_by", [SGD, RMSprop])
def test_a_momentum_that_may_change_needs_a_pass_of_its_own(made_by: type[Optimizer]) -> None:
    made: Any = made_by
    fixed, changing = (rule_of(made([nn.Parameter(torch.zeros(1))], lr=0.1), names) for names in ((), ("momentum",)))
    assert fixed is not None
    assert changing is not None
    assert fixed != changing
    assert fixed.state == tuple(name for name in changing.state if name != "momentum_buffer") != changing.state


def test_rmsprop_cannot_begin_with_momentum_late_just_as_torchs_own() -> None:
    alone = Alone(KINDS["rmsprop"], {"lr": 0.1}, torch.zeros(1))
    alone.update(torch.ones(1), {"momentum": 0.0})
    with pytest.raises(KeyError):
        alone.update(torch.ones(1), {"momentum": 0.5})
    rule = rule_of(alone.optimizer, {"momentum"})
    assert rule is not None
    group = {**alone.optimizer.param_groups[0], **rule.scalars}
    with pytest.raises(TrainingFailed, match="step 3: RMSprop has no momentum to begin with"):
        rule.table(group, {"momentum": np.array([0.0, 0.0, 0.5])}, np.arange(1.0, 4.0))


class MySGD(SGD):
    """Which may update as it likes."""


@pytest.mark.parametrize(
    "optimizer",
    [
        Adamax([nn.Parameter(torch.zeros(1))]),
        MySGD([nn.Parameter(torch.zeros(1))]),
        SGD([{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(1))]}]),
        Adam([nn.Parameter(torch.zeros(1))], differentiable=True),
    ],
    ids=["another kind", "a subclass", "two groups", "differentiable"],
)
def test_an_optimizer_that_does_something_else_has_no_rule(optimizer: Optimizer) -> None:
    assert rule_of(optimizer) is None


def test_the_state_of_nadam_is_rounded_as_torch_rounds_it() -> None:
    torch.set_default_dtype(torch.float32)  # the type that torch keeps its products in
    alone = Alone(KINDS["nadam"], {"lr": 0.1}, torch.zeros(1))
    rule = rule_of(alone.optimizer)
    assert rule is not None
    steps = np.arange(1.0, 301.0)
    group = {**alone.optimizer.param_groups[0], **rule.scalars}
    products = rule.table(group, {"lr": np.full(300, 0.1)}, steps)["mu_product"]
    for product in products:
        alone.update(torch.ones(1), {})
        assert float(product) == float(alone.state["mu_product"])
