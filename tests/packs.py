"""Packs of trials, as tests make and train them."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import RecordingTrial, make_loop
from torch import Tensor, nn

from sweep.tasks import TensorTask
from sweep.training.loop import TrainingLoop
from sweep.training.packed.grouped_rules import GroupedRules, grouped_rules
from sweep.training.packed.member import PackMember
from sweep.training.packed.pack import Pack
from sweep.training.tensors import TensorData, TensorSplit


def rules_of(fit: TrainingLoop) -> GroupedRules:
    """The rules of the trial's optimizer, with the names of the weights in its groups."""
    names = {id(weight): name for name, weight in fit.model.named_parameters()}
    groups = [[names[id(weight)] for weight in group["params"]] for group in fit.optimizer.param_groups]
    rules = grouped_rules(fit.schedule.optimizer, groups, fit.schedule.changing)
    assert rules is not None
    return rules


def member_of(fit: TrainingLoop) -> tuple[PackMember, RecordingTrial]:
    """The trial's place in a pack, before it has begun."""
    member = PackMember(
        schedule=fit.schedule,
        trainer=fit.trainer,
        n_train=fit.data.n_train,
        weights=copy.deepcopy(fit.model.state_dict()),
        rules=rules_of(fit),
        direction=fit.direction,
    )
    observed = RecordingTrial()
    member.trial = observed
    return member, observed


def tensor_data(fit: TrainingLoop) -> TensorData:
    assert isinstance(fit.data, TensorData)
    return fit.data


def tensor_task(fit: TrainingLoop) -> TensorTask:
    assert isinstance(fit.task, TensorTask)
    return fit.task


def weighted(fit: TrainingLoop) -> TrainingLoop:
    """The same trial on samples with weights, some of which are 0."""

    def part(split: TensorSplit) -> TensorSplit:
        drawn = torch.randint(4, (len(split.x),), generator=torch.Generator().manual_seed(0))
        return replace(split, weights=0.7 * drawn.to(split.x.device))

    data = tensor_data(fit)
    fit.data = replace(data, train=part(data.train), val=part(data.val), test=part(data.test))
    return fit


def pack_of(fit: TrainingLoop) -> Pack:
    return Pack(model=fit.model, task=tensor_task(fit), data=tensor_data(fit), trainer=fit.trainer, rules=rules_of(fit))


def together(pack: Pack, members: Sequence[PackMember], width: int = 8) -> dict[PackMember, Exception | None]:
    """Admits the members as rows get free, and trains until all have ended."""
    waiting, ended = list(members), {}
    while waiting or pack.members:
        while waiting and len(pack.members) < width:
            pack.admit(waiting.pop(0))
        for member, error in pack.train_epoch().items():
            pack.release(member)
            ended[member] = error
    return ended


def double(fit: TrainingLoop) -> TrainingLoop:
    """The same trial in float64."""
    fit.model.double()
    fit.data = _double(tensor_data(fit))
    tensor_task(fit).to(fit.device, torch.float64)
    return fit


def _double(data: TensorData) -> TensorData:
    def part(split: TensorSplit) -> TensorSplit:
        return replace(split, x=_doubled(split.x), y=_doubled(split.y))

    return replace(data, train=part(data.train), val=part(data.val), test=part(data.test))


def _doubled(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values


def alone(fit: TrainingLoop) -> RecordingTrial:
    observed = RecordingTrial()
    fit.run(observed)
    return observed


def assert_close(observed: RecordingTrial, expected: RecordingTrial, rtol: float) -> None:
    assert list(observed.points) == list(expected.points)
    assert list(observed.epochs) == list(expected.epochs)
    for step, (loss, lr) in observed.points.items():
        assert loss == pytest.approx(expected.points[step][0], rel=rtol), f"step {step}"
        assert lr == expected.points[step][1]
    for epoch, metrics in observed.epochs.items():
        assert metrics == pytest.approx(expected.epochs[epoch], rel=rtol, abs=rtol / 10), f"epoch {epoch}"


CYCLIC = ("scheduler=cyclic", "scheduler.base_lr=1e-4")


def both_ways(
    *overrides: tuple[str, ...], make: Callable[..., TrainingLoop] = make_loop, rtol: float, width: int = 8
) -> tuple[Pack, list[PackMember], list[RecordingTrial]]:
    """Trains each trial alone and all in a pack, of `width` at a time, and compares the records and the best weights.

    Returns the pack, its members, and what the trials alone recorded.
    """
    expected, best = [], []
    for own in overrides:
        fit = make(*own)
        expected.append(alone(fit))
        best.append(fit.best)
    fits = [make(*own) for own in overrides]
    placed = [member_of(fit) for fit in fits]
    members, pack = [member for member, _ in placed], pack_of(fits[0])
    ended = together(pack, members, width)
    assert ended == dict.fromkeys(members)
    for (member, observed), one, kept in zip(placed, expected, best, strict=True):
        assert_close(observed, one, rtol)
        assert member.best is not None
        assert kept is not None
        assert member.best.epoch == kept.epoch
        assert list(member.best.weights) == list(kept.weights)
        for name, weight in kept.weights.items():
            torch.testing.assert_close(member.best.weights[name], weight, rtol=100 * rtol, atol=10 * rtol)
    return pack, members, expected


def half_trained(
    overrides: Sequence[tuple[str, ...]], make: Callable[..., TrainingLoop]
) -> tuple[Pack, list[tuple[PackMember, RecordingTrial]], list[RecordingTrial]]:
    """A pack whose trials are trained for two epochs, its members, and what each that trains alone records."""
    expected = [alone(make(*own)) for own in overrides]
    fits = [make(*own) for own in overrides]
    placed, pack = [member_of(fit) for fit in fits], pack_of(fits[0])
    for member, _ in placed:
        pack.admit(member)
    for _ in range(2):
        assert pack.train_epoch() == {}
    return pack, placed, expected


def in_float64(*overrides: str, **different: Any) -> TrainingLoop:
    return double(make_loop(*overrides, **different))


def seeded(*overrides: str, lrs: Sequence[float] = (1e-2, 3e-3, 2e-2)) -> list[tuple[str, ...]]:
    """Trials with a seed and a learning rate each."""
    return [("scheduler=constant", f"optimizer.lr={lr}", f"seed={seed}", *overrides) for seed, lr in enumerate(lrs)]


def cycling_momentum(optimizer: str, step_size: int, *rest: str) -> tuple[str, ...]:
    """With a momentum that torch's own scheduler cycles between 0.9 and exactly 0."""
    cyclic = {"base_lr": 1e-3, "max_lr": 0.02, "step_size_up": step_size, "base_momentum": 0.0, "max_momentum": 0.9}
    scheduler = (
        "scheduler=constant",
        "scheduler._target_=torch.optim.lr_scheduler.CyclicLR",
        "scheduler.interval=step",
    )
    arguments = [f"+scheduler.{name}={value}" for name, value in cyclic.items()]
    return (f"optimizer={optimizer}", *scheduler, *arguments, f"seed={step_size}", "trainer.epochs=6", *rest)


class Odd(nn.Module):
    """A frozen layer, a buffer, tied weights, weights that are not used, and a weight without dimensions."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.frozen = nn.Linear(1, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.again.weight
        self.unused = nn.Linear(3, 3)
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.last = nn.Linear(6, 1)
        self.frozen.requires_grad_(False)
        self.register_buffer("scale", torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x)) * self.scale
        x = torch.tanh(self.again(x)) + torch.tanh(self.frozen(x))
        return self.last(torch.tanh(self.tied(x)) * self.gain)


class Stop(Exception):
    """Raised by a report at the end of an epoch, to stop there."""


def stop_after_2(epoch: int) -> None:
    if epoch == 2:
        raise Stop
