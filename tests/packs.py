"""Packs of trials, as tests make and train them."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from conftest import Heard

from sweep.tasks import TensorTask
from sweep.training.loop import TrainingLoop
from sweep.training.packed.pack import Pack, PackMember
from sweep.training.packed.rules import rule_of
from sweep.training.tensors import TensorData, TensorSplit


def member_of(fit: TrainingLoop) -> tuple[PackMember, Heard]:
    """The trial's place in a pack, before it has begun."""
    rule = rule_of(fit.schedule.optimizer, fit.schedule.changing)
    assert rule is not None
    member = PackMember(
        schedule=fit.schedule,
        trainer=fit.trainer,
        n_train=fit.data.n_train,
        weights=copy.deepcopy(fit.model.state_dict()),
        rule=rule,
        direction=fit.direction,
    )
    heard = Heard()
    member.trial = heard
    return member, heard


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
    rule = rule_of(fit.schedule.optimizer, fit.schedule.changing)
    assert rule is not None
    return Pack(model=fit.model, task=tensor_task(fit), data=tensor_data(fit), trainer=fit.trainer, rule=rule)


def together(pack: Pack, members: Sequence[PackMember], width: int = 8) -> dict[PackMember, Exception | None]:
    """Admits the members as rows get free, and trains until all have ended."""
    waiting, ended = list(members), {}
    while waiting or pack.members:
        while waiting and len(pack.members) < width:
            pack.admit(waiting.pop(0))
        for member, ending in pack.train_epoch().items():
            pack.release(member)
            ended[member] = ending
    return ended
