"""Which trials may share a pack: from a config to the pack of its structure, and the trial's slot."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from sweep.config import Config
from sweep.prepare import Data, check_data, new_model, new_schedule
from sweep.train import evaluate
from sweep.train.packed import Pack, Slot, Unpackable
from sweep.train.rules import Rule, rule_of
from sweep.train.runtime import pick_device, reproducible, set_threads
from sweep.train.tensors import TensorData, to_device

_STRUCTURE = ("batch_size", "loss", "precision", "device", "compile", "threads")  # of the trainer; the rest are numbers


class Group:
    """Trials of one structure. model: one of theirs, to test with."""

    def __init__(self, pack: Pack, model: nn.Module, data: Data, threads: int | None) -> None:
        self.pack, self.data = pack, data
        self.n_weights = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        self._model, self._threads = model, threads

    def train_epoch(self) -> tuple[dict[Slot, Exception | None], float]:
        """As the pack's, under the process-wide settings that training needs; and the seconds it took each trial."""
        start, n = time.perf_counter(), len(self.pack.slots)
        with self._settings():
            ended = self.pack.train_epoch()
        return ended, (time.perf_counter() - start) / n

    def test(self, slot: Slot) -> dict[str, float]:
        """What the best weights of a trial come to on the test split."""
        assert slot.best is not None
        self._model.load_state_dict(slot.best.weights)
        self._model.eval()
        forward = self.pack.forward_of(self._model)
        with self._settings():
            return evaluate.test(forward, self.pack.data, self.pack.loss_fn, self.data.samples.noise)

    @contextmanager
    def _settings(self) -> Iterator[None]:
        with reproducible(self.pack.device):
            set_threads(self._threads, self._model, self.pack.data.train.x[: self.pack.batch_size])
            yield


class Packer:
    """Finds or makes the pack for each trial. capacity: of a pack, in trials; load: loads and divides data."""

    def __init__(self, capacity: int, load: Callable[[Config], Data]) -> None:
        self._capacity, self._load = capacity, load
        self._data: dict[str, tuple[Data, TensorData]] = {}
        self._groups: dict[tuple[Any, ...], Group | Unpackable] = {}

    @property
    def groups(self) -> list[Group]:
        """Those with trials in them."""
        return [group for group in self._groups.values() if isinstance(group, Group) and group.pack.slots]

    def slot(self, config: Config) -> tuple[Group, Slot]:
        """A place for the trial in the pack of its kind, which it has yet to take. Raises Unpackable or ConfigError."""
        trainer = config.trainer
        device = pick_device(trainer.device)
        data, tensors = self._loaded(config, device)
        check_data(data, config)
        with reproducible(device):
            model = new_model(config, data.samples, tensors.train.x[: trainer.batch_size])
            schedule = new_schedule(config, len(tensors.train.x), [weight.shape for weight in model.parameters()])
            rule = rule_of(schedule.optimizer)
            if rule is None:
                name = config.optimizer["_target_"]
                raise Unpackable(f"there is no rule for {name} with such arguments")
            group = self._group(config, data, tensors, model, rule)
        slot = Slot(
            schedule=schedule, trainer=trainer, n_train=len(tensors.train.x), weights=model.state_dict(), rule=rule
        )
        return group, slot

    def refuse(self, group: Group, why: Unpackable) -> None:
        """Trials of this kind train alone from now on."""
        self._groups = {key: why if found is group else found for key, found in self._groups.items()}

    def _loaded(self, config: Config, device: torch.device) -> tuple[Data, TensorData]:
        key = json.dumps([config.data, asdict(config.split), str(device)], sort_keys=True, default=str)
        if key not in self._data:
            data = self._load(config)
            self._data[key] = data, to_device(data.splits, device)
        return self._data[key]

    def _group(self, config: Config, data: Data, tensors: TensorData, model: nn.Module, rule: Rule) -> Group:
        trainer = config.trainer
        kind = json.dumps([config.data, asdict(config.split), config.model], sort_keys=True, default=str)
        key = (kind, rule, trainer.clip_norm is None, *(getattr(trainer, name) for name in _STRUCTURE))
        if key not in self._groups:
            loss_fn = evaluate.loss_function(trainer.loss, data.samples.task)
            try:
                pack = Pack(
                    model=model, loss_fn=loss_fn, data=tensors, trainer=trainer, rule=rule, capacity=self._capacity
                )
                self._groups[key] = Group(pack, model, data, trainer.threads)
            except Unpackable as why:
                self._groups[key] = why
        found = self._groups[key]
        if isinstance(found, Unpackable):
            raise found
        return found
