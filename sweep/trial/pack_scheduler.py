"""Assign trials to packs: find or make the pack that fits a config, and make the trial a member of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sweep.config.optimizer_node import frozen_of
from sweep.config.schema import Config
from sweep.tasks import TensorTask
from sweep.training import evaluate
from sweep.training.checks import check_metrics
from sweep.training.packed.grouped_rules import GroupedRules, grouped_rules
from sweep.training.packed.member import PackMember
from sweep.training.packed.pack import Pack
from sweep.training.packed.parameters import Unpackable
from sweep.training.packed.width import best_width, refuse_large
from sweep.training.runtime import pick_device, refuse_fp16, reproducible, set_threads
from sweep.training.schedule import Schedule
from sweep.training.tensors import TensorData, to_device
from sweep.trial import build
from sweep.trial.build_task import build_task
from sweep.trial.checks import check_data
from sweep.trial.model_facts import ModelFacts
from sweep.trial.prepare import Data, data_key, new_model, new_schedule

# The trainer's settings that all trials of a pack share. The others are numbers that may differ from trial to trial.
_STRUCTURE = ("batch_size", "loss", "precision", "device", "compile", "threads")

# Settings under which a pack would not train as a single trial does, with the value that they must have.
_ALONE = {"accumulate": 1, "max_steps": None, "val_interval": 1, "ema": None, "callbacks": []}

_Kind = tuple[Any, ...]  # equal for trials that may share a pack, if the same rules update them


class Group:
    """Trials of one structure, and the pack that trains them.

    `width` is the number of trials that train at once. `n_weights` counts the trainable weights of one trial. `facts`
    is what is stored with each trial's weights.
    """

    def __init__(
        self, pack: Pack, model: nn.Module, data: Data, threads: int | None, width: int, facts: ModelFacts
    ) -> None:
        """Make the group. `model` is the model of any of its trials; its weights are overwritten by `test`."""
        self.pack, self.data, self.width, self.facts = pack, data, width, facts
        self.n_weights = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        self._model, self._threads = model, threads

    def advance(self) -> tuple[dict[PackMember, Exception | None], float]:
        """Train every trial for one epoch, under the process-wide settings that training needs.

        Returns:
            What ended trials early, as from `Pack.advance`, and the seconds for each trial: the time of the epoch
            divided by the number of trials.
        """
        start, n = time.perf_counter(), len(self.pack.members)
        with self._settings():
            ended = self.pack.advance()
        return ended, (time.perf_counter() - start) / n

    def test(self, member: PackMember) -> dict[str, float]:
        """Return the metrics of a trial's best weights on the test split, by name. It must have trained an epoch."""
        assert member.best is not None
        self._model.load_state_dict(member.best.weights)
        self._model.eval()
        forward = self.pack.forward_of(self._model)
        with self._settings():
            return evaluate.test(forward, self.pack.data, self.pack.task, self.data.content.noise, see=None)

    @contextmanager
    def _settings(self) -> Iterator[None]:
        with reproducible(self.pack.device):
            set_threads(self._threads, self._model, self.pack.data.train.x[: self.pack.batch_size])
            yield


class PackScheduler:
    """Finds or makes the pack for each trial. Keeps the data of every trial so far on its device."""

    def __init__(self, width: int | None, most: int, load: Callable[[Config], Data]) -> None:
        """Make a scheduler without packs.

        Args:
            width: the number of trials in a pack; None measures which width is fastest.
            most: the largest width that measuring may choose.
            load: loads and divides the data of a config.
        """
        self._width, self._most, self._load = width, most, load
        self._data: dict[str, tuple[Data, TensorData]] = {}
        self._tasks: dict[_Kind, TensorTask] = {}
        self._groups: dict[_Kind, dict[GroupedRules, Group]] = {}
        self._refused: dict[tuple[_Kind, GroupedRules], Unpackable] = {}  # what a pack gains depends on the rules too

    @property
    def groups(self) -> list[Group]:
        """The groups that have trials."""
        return [group for of_kind in self._groups.values() for group in of_kind.values() if group.pack.members]

    def member(self, config: Config) -> tuple[Group, PackMember]:
        """Build a trial, and find or make the group that fits it. `Pack.admit` then adds the trial to the pack.

        Raises:
            Unpackable: the trial cannot be packed, or gains nothing from it.
            ConfigError: the config does not fit the data, or something in it cannot be built.
        """
        if config.is_function:
            raise Unpackable(f"{config.trainer.call} trains it, not sweep's own loop")
        trainer, kind = config.trainer, _kind(config)
        device = pick_device(trainer.device)
        refuse_fp16(trainer.precision, device)
        _require_plain(config)
        data, tensors = self._loaded(config, device)
        check_data(data, config)
        n_train = len(tensors.train.x)
        with reproducible(device):
            seen_before = kind in self._groups
            task = self._tasks.get(kind) or _tensor_task(config, data, device)
            batch = tensors.example(trainer.batch_size)
            model = new_model(config, data.content, task, batch, device, seen_before)
            if not seen_before:
                check_metrics(task, {"val": tensors.val.y, "test": tensors.test.y})
                self._tasks[kind] = task
            schedule = new_schedule(config, n_train, model)
            rules = _rules(config, schedule, model)
            if (kind, rules) in self._refused:
                raise self._refused[kind, rules]
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            member = PackMember(
                schedule=schedule,
                trainer=trainer,
                n_train=n_train,
                weights=weights,
                rules=rules,
                direction=config.monitor_direction,
                step_points=config.tracking.step_points,
            )
            of_kind = self._groups.setdefault(kind, {})
            if rules not in of_kind:
                try:
                    of_kind[rules] = self._group(config, data, tensors, task, model, rules)
                except Unpackable as why:
                    self._refused[kind, rules] = why
                    raise
        return of_kind[rules], member

    def forget(self, group: Group) -> None:
        """Drop the group, so that its memory can be freed. The next trial of its kind makes a new one."""
        for of_kind in self._groups.values():
            for rules in [rules for rules, known in of_kind.items() if known is group]:
                del of_kind[rules]

    def refuse(self, group: Group, why: Unpackable) -> None:
        """Raise `why` for further trials that fit this group, so that they train sequentially."""
        for kind, of_kind in self._groups.items():
            for rules in [rules for rules, known in of_kind.items() if known is group]:
                self._refused[kind, rules] = why

    def _loaded(self, config: Config, device: torch.device) -> tuple[Data, TensorData]:
        key = data_key(config, str(device))
        if key not in self._data:
            data = self._load(config)
            if data.divided is None:
                raise Unpackable("its data are torch datasets, which each trial loads batch by batch")
            if data.samples.augment is not None:
                raise Unpackable("its data are augmented, which each trial does batch by batch")
            self._data[key] = data, to_device(data.splits, device)
        return self._data[key]

    def _group(
        self, config: Config, data: Data, tensors: TensorData, task: TensorTask, model: nn.Module, rules: GroupedRules
    ) -> Group:
        """Make a group for trials like this one, and measure its width if none is set. Raises Unpackable."""
        trainer = config.trainer
        batch = tensors.train.first(trainer.batch_size)
        set_threads(trainer.threads, model, batch[0])
        sequential_s = 0.0
        if self._width is None:
            optimizer = build.optimizer(config.optimizer, model)
            sequential_s = refuse_large(model, optimizer, task.loss_of, batch)
        pack = Pack(model=model, task=task, data=tensors, trainer=trainer, rules=rules)
        width = best_width(pack, sequential_s, self._most) if self._width is None else self._width
        return Group(pack, model, data, trainer.threads, width, ModelFacts.of(config, data, task))


def _tensor_task(config: Config, data: Data, device: torch.device) -> TensorTask:
    """Build the task. Raise Unpackable if its loss cannot be computed for many trials at once."""
    task = build_task(config.task, data.content, data.divided, device)
    if not isinstance(task, TensorTask):
        raise Unpackable(f"the task {config.task['_target_']} is no sweep.tasks.TensorTask")
    return task


def _rules(config: Config, schedule: Schedule, model: nn.Module) -> GroupedRules:
    """Return the rules of the trial's optimizer. Raise Unpackable if there are none."""
    names, made = build.group_names(config.optimizer, model), schedule.optimizer.param_groups
    if [*map(len, names)] != [len(group["params"]) for group in made]:
        raise Unpackable(f"{config.optimizer['_target_']} divides the weights into groups itself")
    rules = grouped_rules(schedule.optimizer, names, schedule.changing)
    if rules is None:
        raise Unpackable(f"there is no rule for {config.optimizer['_target_']} with such arguments")
    return rules


def _require_plain(config: Config) -> None:
    """Raise Unpackable for a setting that a pack does not have."""
    for name, plain in _ALONE.items():
        if getattr(config.trainer, name) != plain:
            raise Unpackable(f"trainer.{name} is set")
    if config.trainer.precision == "fp16":
        raise Unpackable("trainer.precision=fp16 scales the gradients of each trial on its own")


def _kind(config: Config) -> _Kind:
    """Return what trials of one pack have in common, besides the rules that update them.

    Clipping belongs to it only as on or off: the norm or value at which to clip may differ from trial to trial.
    """
    trainer = config.trainer
    structure = [config.model, config.task, frozen_of(config.optimizer)]
    clips = (trainer.clip_norm is None, trainer.clip_value is None)
    return data_key(config, structure), clips, *(getattr(trainer, name) for name in _STRUCTURE)
