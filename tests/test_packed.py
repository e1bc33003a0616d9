"""sweep/train/packed.py: a trial in a pack comes to what it comes to alone."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from conftest import Heard, make_fit

from sweep.signals import StopRequest
from sweep.train.loop import Fit
from sweep.train.packed import Pack, Slot
from sweep.train.rules import rule_of
from sweep.train.tensors import TensorData, TensorSplit

RULES = {
    "sgd": ("optimizer=sgd",),
    "momentum": ("optimizer=momentum", "+optimizer.dampening=0.2", "optimizer.weight_decay=1e-3"),
    "nesterov": ("optimizer=nesterov",),
    "adam": ("optimizer=adam", "optimizer.weight_decay=1e-3"),
    "adam-amsgrad": ("optimizer=adam", "+optimizer.amsgrad=true"),
    "adamw": ("optimizer=adamw",),
    "rmsprop": ("optimizer=rmsprop", "optimizer.momentum=0.5", "+optimizer.centered=true"),
    "adagrad": ("optimizer=adagrad", "+optimizer.lr_decay=1e-3", "+optimizer.initial_accumulator_value=0.1"),
    "nadam": ("optimizer=nadam", "+optimizer.decoupled_weight_decay=true", "optimizer.weight_decay=1e-2"),
    "radam": ("optimizer=radam",),
}


def double(fit: Fit) -> Fit:
    """The same trial in float64."""
    fit.model.double()
    fit.data = _double(fit.data)
    return fit


def _double(data: TensorData) -> TensorData:
    def part(split: TensorSplit) -> TensorSplit:
        return replace(split, x=split.x.double(), y=split.y.double() if split.y.is_floating_point() else split.y)

    return replace(data, train=part(data.train), val=part(data.val), test=part(data.test))


def slot_of(fit: Fit) -> tuple[Slot, Heard]:
    """The trial's place in a pack, before it has begun."""
    rule = rule_of(fit.schedule.optimizer)
    assert rule is not None
    slot = Slot(
        schedule=fit.schedule,
        trainer=fit.trainer,
        n_train=len(fit.data.train.x),
        weights=copy.deepcopy(fit.model.state_dict()),
        rule=rule,
    )
    heard = Heard()
    slot.listener = heard
    return slot, heard


def pack_of(fit: Fit) -> Pack:
    rule = rule_of(fit.schedule.optimizer)
    assert rule is not None
    return Pack(model=fit.model, loss_fn=fit.loss_fn, data=fit.data, trainer=fit.trainer, rule=rule)


def alone(fit: Fit) -> Heard:
    heard = Heard()
    fit.run(heard, StopRequest(), lambda: None)
    return heard


def together(pack: Pack, slots: Sequence[Slot], width: int = 8) -> dict[Slot, Exception | None]:
    """Seats the slots as rows get free, and trains until all have ended."""
    waiting, ended = list(slots), {}
    while waiting or pack.slots:
        while waiting and len(pack.slots) < width:
            pack.seat(waiting.pop(0))
        for slot, ending in pack.train_epoch().items():
            pack.leave(slot)
            ended[slot] = ending
    return ended


def assert_close(heard: Heard, expected: Heard, rtol: float) -> None:
    assert list(heard.points) == list(expected.points)
    assert list(heard.epochs) == list(expected.epochs)
    for step, (loss, lr) in heard.points.items():
        assert loss == pytest.approx(expected.points[step][0], rel=rtol), f"step {step}"
        assert lr == expected.points[step][1]
    for epoch, metrics in heard.epochs.items():
        assert metrics == pytest.approx(expected.epochs[epoch], rel=rtol), f"epoch {epoch}"


@pytest.fixture
def float64() -> Iterator[None]:
    """Torch keeps some of an optimizer's state in the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


CYCLIC = ("scheduler=cyclic", "scheduler.base_lr=1e-4")


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rule", RULES)
def test_200_steps_in_float64_are_those_of_each_trial_alone(rule: str) -> None:
    differing = [("2e-2",), ("1e-2", "trainer.epochs=20"), ("5e-3", "trainer.epochs=7"), ("3e-2",)]
    overrides = [
        (*RULES[rule], *CYCLIC, "trainer.epochs=40", f"seed={seed}", f"scheduler.max_lr={lr}", *more)
        for seed, (lr, *more) in enumerate(differing)
    ]
    expected = [alone(double(make_fit(*o))) for o in overrides]
    fits = [double(make_fit(*o)) for o in overrides]
    slots = [slot_of(fit) for fit in fits]
    ended = together(pack_of(fits[0]), [slot for slot, _ in slots], width=3)  # the last takes the third's row
    assert set(ended.values()) == {None}
    for (_, heard), one in zip(slots, expected, strict=True):
        assert_close(heard, one, rtol=1e-9)
