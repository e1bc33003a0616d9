"""The training loop of one trial: read `TrainingLoop.run` from top to bottom."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sweep.training import evaluate
from sweep.training.checkpoint import check_kinds, kinds, random_states, set_random_states
from sweep.training.evaluate import LossFn
from sweep.training.runtime import in_precision
from sweep.training.schedule import Row, Schedule
from sweep.training.state import Best, Listener, TrainState
from sweep.training.tensors import TensorData, batches, epoch_order
from sweep.utils.errors import ConfigError, Interrupted, SweepError, TrainingFailed, one_line
from sweep.utils.signals import StopRequest

if TYPE_CHECKING:
    from sweep.config.nodes import Trainer

_SYNC_EVERY = {"cpu": 1}  # updates between reading losses back; elsewhere a read stalls the device
_SYNC_EVERY_DEFAULT = 50


class TrainingLoop(TrainState):
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
        super().__init__(schedule, trainer, len(data.train.x))
        self.model, self.optimizer = model, optimizer
        self.loss_fn, self.data = loss_fn, data
        self.device = data.train.x.device
        self._pending: list[Tensor] = []  # losses still on the device
        self._sync_every = _SYNC_EVERY.get(self.device.type, _SYNC_EVERY_DEFAULT)
        self._call = torch.compile(model) if trainer.compile else model
        self._clock, self._saved_at = clock, clock()

    def run(self, listener: Listener, stop: StopRequest, save: Callable[[], None]) -> Best:
        """Trains until `trainer.epochs` or until patience ends; raises Diverged, Interrupted or what `listener` raises.

        `save` is called every `trainer.checkpoint_interval_s` seconds, also inside an epoch, and before Interrupted is
        raised; with an interval of 0 it is called after every epoch.
        """
        for _ in self.epochs(listener, stop, save):
            pass
        assert self.best is not None
        return self.best

    def epochs(self, listener: Listener, stop: StopRequest, save: Callable[[], None]) -> Iterator[int]:
        """Train as `run` does, and yield the number of each finished epoch, so that other trials may train in between.

        A stop that `listener` asks for takes effect at the end of the epoch.
        """
        while not self.is_over:
            try:
                with self._telling_failures():
                    self._train_epoch(stop, save)
            finally:
                self.tell_steps(listener)
            with self._telling_failures():
                metrics = self.finish_epoch(self.evaluate("val"), lambda: copied(self.model.state_dict()))
            listener.epoch(self.epoch, metrics)
            if self.trainer.checkpoint_interval_s == 0:
                self._checkpoint(save)
            self._heed(stop, save)
            yield self.epoch
            self._heed(stop, save)

    def _heed(self, stop: StopRequest, save: Callable[[], None]) -> None:
        """Between two epochs, raise Interrupted if it was asked for; what is over ends as usual."""
        if stop.signum is not None and not self.is_over:
            self._checkpoint(save)
            raise Interrupted(stop.signum)

    @contextmanager
    def _telling_failures(self) -> Iterator[None]:
        """Raises TrainingFailed for whatever a model or torch raises; a full disk is told as itself."""
        try:
            yield
        except (SweepError, OSError):
            raise
        except Exception as error:
            raise TrainingFailed(
                f"{type(error).__name__}: {one_line(error)}", self.step + len(self._pending) + 1
            ) from error

    def _train_epoch(self, stop: StopRequest, save: Callable[[], None]) -> None:
        self.start_epoch()
        order = epoch_order(self.trainer.seed, self.epoch + 1, len(self.data.train.x))
        start = len(self.losses)
        self.model.train()
        self._switch_optimizer("train")
        for row, (x, y) in zip(
            self.schedule.rows[start:], batches(self.data.train, order, self.trainer.batch_size, start), strict=True
        ):
            self._pending.append(self._update(row, x, y))
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

    def forward(self, x: Tensor) -> Tensor:
        """(B, *in_shape) -> (B, out_features) in float32, computed in the trainer's precision."""
        return in_precision(self.trainer.precision, self._call, x)

    def evaluate(self, split: str) -> dict[str, float]:
        """Loss and metrics of the current weights on `val` or `test`, as `val/loss` and so on."""
        self.model.eval()
        self._switch_optimizer("eval")
        metrics = evaluate.evaluate(self.forward, getattr(self.data, split), self.data, self.loss_fn)
        return {f"{split}/{name}": value for name, value in metrics.items()}

    def _switch_optimizer(self, mode: str) -> None:
        """Call the optimizer's `train` or `eval`, if it has both: a schedule-free one evaluates other weights."""
        if all(callable(getattr(self.optimizer, name, None)) for name in ("train", "eval")):
            getattr(self.optimizer, mode)()

    def test(self, noise: float | None) -> dict[str, float]:
        """Metrics of the best weights on the test split; `noise` as in `Samples`. The model keeps those weights."""
        assert self.best is not None
        self.model.load_state_dict(self.best.weights)
        self.model.eval()
        return evaluate.test(self.forward, self.data, self.loss_fn, noise)

    def state_dict(self) -> dict[str, Any]:
        self._read_losses()
        return {
            "kinds": self._kinds(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_states(),
            **self.course_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ConfigError when the checkpoint is of another model, optimizer or scheduler."""
        check_kinds(state, self._kinds())
        for part in self._kinds():
            try:
                getattr(self, part).load_state_dict(state[part])
            except (RuntimeError, ValueError, KeyError, AttributeError) as error:
                reason = one_line(error)
                raise ConfigError(
                    "resume", f"the checkpoint is of another {part} than the config ({reason})"
                ) from error
        self.load_course_state(state)
        set_random_states(state["random"])

    def _kinds(self) -> dict[str, str]:
        return kinds(self.model, self.optimizer, self.schedule.scheduler)

    def _read_losses(self) -> None:
        """Brings losses to the host. Raises Diverged at the first that is not finite."""
        pending, self._pending = self._pending, []
        values = [pending[0].item()] if len(pending) == 1 else torch.stack(pending).tolist() if pending else []
        self.record(values)

    def _checkpoint_due(self) -> bool:
        return 0 < self.trainer.checkpoint_interval_s <= self._clock() - self._saved_at

    def _checkpoint(self, save: Callable[[], None]) -> None:
        save()
        self._saved_at = self._clock()


def copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}
