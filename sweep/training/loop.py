"""The training loop of one trial: read `TrainingLoop.run` from top to bottom."""

from collections.abc import Iterator
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
from sweep.training.state import Best, TrainState
from sweep.training.tensors import TensorData, batches, epoch_order
from sweep.training.trial import Trial
from sweep.utils.errors import ConfigError, SweepError, TrainingFailed, one_line

if TYPE_CHECKING:
    from sweep.config.nodes import Trainer

_SYNC_EVERY = {"cpu": 1}  # updates between two reads of losses; on other devices, each read stalls the device
_SYNC_EVERY_DEFAULT = 50


class TrainingLoop(TrainState):
    """One trial's training. Everything that changes while it runs is in `state_dict`, and so in every checkpoint."""

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        loss_fn: LossFn,
        data: TensorData,
        trainer: "Trainer",
        step_points: int | None = None,
    ) -> None:
        super().__init__(schedule, trainer, len(data.train.x), step_points)
        self.model, self.optimizer = model, optimizer
        self.loss_fn, self.data = loss_fn, data
        self.device = data.train.x.device
        self._pending: list[Tensor] = []  # losses still on the device
        self._sync_every = _SYNC_EVERY.get(self.device.type, _SYNC_EVERY_DEFAULT)
        self._call = torch.compile(model) if trainer.compile else model

    def run(self, trial: Trial) -> Best:
        """Train for `trainer.epochs` epochs, or until patience ends, and return the best epoch.

        The state is saved whenever `trial.should_save` is true. Inside an epoch it is checked after each update, unless
        `trainer.checkpoint_interval_s` is 0; a stop is honoured there in any case. If a stop is requested after the
        last update, the trial completes instead.

        Raises:
            Diverged: a loss or a metric is not finite.
            TrainingFailed: the model or torch raised an error.
            Pruned, Interrupted: see `Trial`.
        """
        while not self.is_over:
            try:
                with self._as_training_failed():
                    self._train_epoch(trial)
            finally:
                self.log_steps(trial)
            with self._as_training_failed():
                metrics = self.finish_epoch(self.evaluate("val"), lambda: copied(self.model.state_dict()))
            trial.report(self.epoch, metrics)
            if trial.should_save and not (trial.should_stop and self.is_over):
                trial.save(self.epoch, self.state_dict())
        assert self.best is not None
        return self.best

    @contextmanager
    def _as_training_failed(self) -> Iterator[None]:
        """Turn any error of the model or of torch into TrainingFailed. An OSError, such as a full disk, passes."""
        try:
            yield
        except (SweepError, OSError):
            raise
        except Exception as error:
            raise TrainingFailed(
                f"{type(error).__name__}: {one_line(error)}", self.step + len(self._pending) + 1
            ) from error

    def _train_epoch(self, trial: Trial) -> None:
        saves_inside = self.trainer.checkpoint_interval_s > 0
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
            if trial.should_stop or (saves_inside and trial.should_save):
                trial.save(self.epoch, self.state_dict())
        self._read_losses()

    def _update(self, row: Row, x: Tensor, y: Tensor) -> Tensor:
        """Do one optimizer update and return the loss, shape (), still on the device."""
        for group, values in zip(self.optimizer.param_groups, self.schedule.scaled(row), strict=True):
            group.update(values)
        loss = self.loss_fn(self.forward(x), y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.trainer.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.trainer.clip_norm)
        self.optimizer.step()
        return loss.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, *in_shape) to (B, out_features) in float32, or float64 if the model is; see `in_precision`."""
        return in_precision(self.trainer.precision, self._call, x)

    def evaluate(self, split: str) -> dict[str, float]:
        """Return loss and metrics of the current weights on `val` or `test`, as `val/loss` and so on."""
        self.model.eval()
        self._switch_optimizer("eval")
        metrics = evaluate.evaluate(self.forward, getattr(self.data, split), self.data, self.loss_fn)
        return {f"{split}/{name}": value for name, value in metrics.items()}

    def _switch_optimizer(self, mode: str) -> None:
        """Call the optimizer's `train` or `eval` if it has both: a schedule-free optimizer evaluates other weights."""
        if all(callable(getattr(self.optimizer, name, None)) for name in ("train", "eval")):
            getattr(self.optimizer, mode)()

    def test(self, noise: float | None) -> dict[str, float]:
        """Load the best weights into the model and return their metrics on the test split. noise: as in `Samples`."""
        assert self.best is not None
        self.model.load_state_dict(self.best.weights)
        self.model.eval()
        return evaluate.test(self.forward, self.data, self.loss_fn, noise)

    def state_dict(self) -> dict[str, Any]:
        """Return a checkpoint's content. Raises Diverged if a loss that was still on the device is not finite."""
        self._read_losses()
        return {
            "kinds": self._kinds(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_states(),
            **self.course_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint. Raises ConfigError if it has another model, optimizer or scheduler."""
        check_kinds(state, self._kinds())
        for part in self._kinds():
            try:
                getattr(self, part).load_state_dict(state[part])
            except (RuntimeError, ValueError, KeyError, AttributeError) as error:
                reason = one_line(error)
                raise ConfigError("resume", f"the checkpoint has another {part} than the config ({reason})") from error
        self.load_course_state(state)
        set_random_states(state["random"])

    def _kinds(self) -> dict[str, str]:
        return kinds(self.model, self.optimizer, self.schedule.scheduler)

    def _read_losses(self) -> None:
        """Copy the pending losses to the host. Raises Diverged at the first that is not finite."""
        pending, self._pending = self._pending, []
        values = [pending[0].item()] if len(pending) == 1 else torch.stack(pending).tolist() if pending else []
        self.record(values)


def copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}
