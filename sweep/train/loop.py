"""The training loop of one trial: read `Fit.run` from top to bottom."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sweep.errors import ConfigError, Diverged, Interrupted, SweepError, TrainingFailed, one_line
from sweep.signals import StopRequest
from sweep.train.checkpoint import random_states, set_random_states
from sweep.train.evaluate import LossFn, evaluate, is_finite, noise_floor
from sweep.train.schedule import Row, Schedule
from sweep.train.tensors import TensorData, batches, epoch_order

if TYPE_CHECKING:
    from sweep.config import Trainer

_SYNC_EVERY = {"cpu": 1}  # updates between reading losses back; elsewhere a read stalls the device
_SYNC_EVERY_DEFAULT = 50


class Listener(Protocol):
    """Hears of a trial's progress. `epoch` may raise to end the trial early, as a study's pruner does."""

    def steps(self, first: int, losses: Sequence[float], lrs: Sequence[float]) -> None: ...
    def epoch(self, epoch: int, metrics: dict[str, float]) -> None: ...


@dataclass
class Best:
    """The epoch with the lowest validation loss so far, and its weights."""

    epoch: int
    value: float
    weights: dict[str, Tensor]


class Fit:
    """One trial's training. All that changes while it runs is in `state_dict`, and all of that is in a checkpoint."""

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        loss_fn: LossFn,
        data: TensorData,
        trainer: "Trainer",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.loss_fn, self.data, self.trainer = loss_fn, data, trainer
        self.device = data.train.x.device
        self.n_updates = math.ceil(len(data.train.x) / trainer.batch_size)  # an epoch
        self.epoch = 0  # finished
        self.step = 0  # finished
        self.losses: list[float] = []  # of the epoch in progress, one an update
        self.best: Best | None = None
        self._milestone = (0, math.inf)  # epoch and value of the last improvement that patience counts
        self._pending: list[Tensor] = []  # losses still on the device
        self._sync_every = _SYNC_EVERY.get(self.device.type, _SYNC_EVERY_DEFAULT)
        self._call = torch.compile(model) if trainer.compile else model
        self._clock, self._saved_at = clock, clock()

    def run(self, listener: Listener, stop: StopRequest, save: Callable[[], None]) -> Best:
        """Trains until `trainer.epochs` or until patience ends; raises Diverged, Interrupted or what `listener` raises.

        `save` is called every `trainer.checkpoint_interval_s` seconds, also inside an epoch, and before Interrupted is
        raised; with an interval of 0 it is called after every epoch.
        """
        while self.epoch < self.trainer.epochs and not self._out_of_patience():
            try:
                with self._telling_failures():
                    self._train_epoch(stop, save)
            finally:  # a diverged epoch's steps are worth seeing too
                listener.steps(self.epoch * self.n_updates + 1, self.losses, self._lrs())
            with self._telling_failures():
                metrics = self._finish_epoch()
            listener.epoch(self.epoch, metrics)
            if self.trainer.checkpoint_interval_s == 0:
                self._checkpoint(save)
        assert self.best is not None
        return self.best

    @contextmanager
    def _telling_failures(self) -> Iterator[None]:
        """Raises TrainingFailed for whatever a model or torch raises; a full disk is told as itself."""
        try:
            yield
        except (SweepError, OSError):
            raise
        except Exception as error:
            raise TrainingFailed(f"{type(error).__name__}: {one_line(error)}", self.step + 1) from error

    def _train_epoch(self, stop: StopRequest, save: Callable[[], None]) -> None:
        if not self.losses:  # else a checkpoint from inside this epoch was loaded
            self.schedule.start_epoch(self.n_updates)
        order = epoch_order(self.trainer.seed, self.epoch + 1, len(self.data.train.x))
        start = len(self.losses)
        self.model.train()
        for row, (x, y) in zip(
            self.schedule.rows[start:], batches(self.data.train, order, self.trainer.batch_size, start), strict=True
        ):
            self._pending.append(self._update(row, x, y))
            self.step += 1
            if len(self._pending) == self._sync_every:
                self._read_losses()
            if stop.signum is not None:
                self._checkpoint(save)
                raise Interrupted(stop.signum)
            if self._checkpoint_due():
                self._checkpoint(save)
        self._read_losses()

    def _update(self, row: Row, x: Tensor, y: Tensor) -> Tensor:
        """One optimizer update; returns the loss, shape (), still on the device."""
        for group, values in zip(self.optimizer.param_groups, row, strict=True):
            group.update(values)
        loss = self.loss_fn(self.forward(x), y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.trainer.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.trainer.clip_norm)
        self.optimizer.step()
        return loss.detach()

    def _finish_epoch(self) -> dict[str, float]:
        """Validates, keeps the best weights and moves on; returns the epoch's metrics."""
        val = self.evaluate("val")
        lr = self._lrs()[-1]
        if not is_finite(val):
            name = next(name for name, value in val.items() if not math.isfinite(value))
            raise Diverged(name, val[name], self.step, lr)
        metrics = {"train/loss": self._mean_loss(), **val, "lr": lr}
        value = val["val/loss"]
        self.schedule.end_epoch(value)
        self.epoch += 1
        self.losses = []
        if self.best is None or value < self.best.value:
            self.best = Best(self.epoch, value, _copy(self.model.state_dict()))
        if value < self._milestone[1] - self.trainer.min_delta:
            self._milestone = (self.epoch, value)
        return metrics

    def forward(self, x: Tensor) -> Tensor:
        """(B, *in_shape) -> (B, out_features) in float32, computed in the trainer's precision."""
        if self.trainer.precision == "bf16":
            with torch.autocast(self.device.type, torch.bfloat16):
                return self._call(x).float()
        return self._call(x)

    def evaluate(self, split: str) -> dict[str, float]:
        """Loss and metrics of the current weights on `val` or `test`, as `val/loss` and so on."""
        self.model.eval()
        metrics = evaluate(self.forward, getattr(self.data, split), self.data, self.loss_fn)
        return {f"{split}/{name}": value for name, value in metrics.items()}

    def test(self, noise: float | None) -> dict[str, float]:
        """Metrics of the best weights on the test split; `noise` as in `Samples`. The model keeps those weights."""
        assert self.best is not None
        self.model.load_state_dict(self.best.weights)
        metrics = self.evaluate("test")
        if noise is not None and self.data.test.clean is not None:
            floor = noise_floor(self.forward, self.data.test, self.data, noise)
            metrics |= {f"test/{name}": value for name, value in floor.items()}
        return metrics

    def state_dict(self) -> dict[str, Any]:
        self._read_losses()
        return {
            "kinds": self._kinds(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": random_states(),
            "epoch": self.epoch,
            "step": self.step,
            "losses": self.losses,
            "best": None if self.best is None else vars(self.best),
            "milestone": self._milestone,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ConfigError when the checkpoint is of another model, optimizer or scheduler."""
        for part, kind in self._kinds().items():
            saved = state.get("kinds", {}).get(part)
            if saved != kind:
                raise ConfigError(
                    "resume", f"the checkpoint is of another {part} than the config ({saved}, not {kind})"
                )
            try:
                getattr(self, part).load_state_dict(state[part])
            except (RuntimeError, ValueError, KeyError, AttributeError) as error:
                reason = one_line(error)
                raise ConfigError(
                    "resume", f"the checkpoint is of another {part} than the config ({reason})"
                ) from error
        self.epoch, self.step, self.losses = state["epoch"], state["step"], state["losses"]
        best = state["best"]
        if best is not None:
            weights = {name: weight.to(self.device) for name, weight in best["weights"].items()}
            self.best = Best(best["epoch"], best["value"], weights)
        self._milestone = tuple(state["milestone"])
        set_random_states(state["random"])

    def _kinds(self) -> dict[str, str]:
        """Class names; most optimizers and schedulers load another one's state without a word."""
        kinds = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule.scheduler}
        return {part: type(made).__qualname__ for part, made in kinds.items()}

    def _read_losses(self) -> None:
        """Brings losses to the host. Raises Diverged at the first that is not finite."""
        pending, self._pending = self._pending, []
        values = [pending[0].item()] if len(pending) == 1 else torch.stack(pending).tolist() if pending else []
        first = self.step - len(values) + 1
        for step, value in enumerate(values, first):
            if not math.isfinite(value):
                self.step = step - 1  # the last update whose loss is in `losses`
                lr = self.schedule.rows[len(self.losses)][0]["lr"]
                raise Diverged("train/loss", value, step, lr)
            self.losses.append(value)

    def _lrs(self) -> list[float]:
        """Learning rates of the updates in `losses`, of the first parameter group."""
        return [row[0]["lr"] for row in self.schedule.rows[: len(self.losses)]]

    def _mean_loss(self) -> float:
        n, size = len(self.data.train.x), self.trainer.batch_size
        last = n - size * (self.n_updates - 1)  # the last batch may be smaller
        return (sum(self.losses[:-1]) * size + self.losses[-1] * last) / n

    def _out_of_patience(self) -> bool:
        return self.trainer.patience is not None and self.epoch - self._milestone[0] >= self.trainer.patience

    def _checkpoint_due(self) -> bool:
        return 0 < self.trainer.checkpoint_interval_s <= self._clock() - self._saved_at

    def _checkpoint(self, save: Callable[[], None]) -> None:
        save()
        self._saved_at = self._clock()


def _copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}
