"""The training loop of one trial: read `TrainingLoop.run` from top to bottom."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sweep.tasks import Task, TensorTask
from sweep.training import evaluate
from sweep.training.callbacks import Callbacks, Stopped
from sweep.training.checkpoint import check_kinds, kinds, random_states, set_random_states
from sweep.training.data import Batch, LoadingFailed, See, Split, TrainingData, loading_failure, shares
from sweep.training.runtime import autocast, in_precision, refuse_fp16
from sweep.training.schedule import Row, Schedule
from sweep.training.state import Best, TrainState
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
        task: TensorTask | Task,
        data: TrainingData,
        trainer: "Trainer",
        direction: str = "minimize",
        step_points: int | None = None,
        callbacks: Callbacks | None = None,
    ) -> None:
        """Make the loop of a model that has its initial weights.

        Raises:
            ConfigError: the trainer's precision or its average of the weights does not fit the device or the optimizer.
        """
        super().__init__(schedule, trainer, data.n_train, direction, step_points)
        self.model, self.optimizer = model, optimizer
        self.task, self.data = task, data
        self.device = data.device
        self._pending: list[Tensor] = []  # losses still on the device
        self._sync_every = _SYNC_EVERY.get(self.device.type, _SYNC_EVERY_DEFAULT)
        self._module: Any = torch.compile(model) if trainer.compile else model
        refuse_fp16(trainer.precision, self.device)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=trainer.precision == "fp16")
        self._average = None if trainer.ema is None else self._averaged(trainer.ema)
        self._callbacks = callbacks or Callbacks()
        self._of_callbacks: dict[str, float] = {}  # metrics of the best weights

    def run(self, trial: Trial) -> Best:
        """Train for `trainer.epochs` epochs, or until patience ends or a callback stops, and return the best epoch.

        The state is saved whenever `trial.should_save` is true. Inside an epoch it is checked after each update, unless
        `trainer.checkpoint_interval_s` is 0; a stop is honoured there in any case. If a stop is requested after the
        last update, the trial completes instead.

        Raises:
            Diverged: a loss or a metric is not finite.
            TrainingFailed: the model or torch raised an error.
            Pruned, Interrupted: see `Trial`.
        """
        with self._losses_of_workers():
            self._run(trial)
        assert self.best is not None
        return self.best

    def _run(self, trial: Trial) -> None:
        self.model.train()  # checks before the training leave it in evaluation mode
        self._callbacks.start(trial, self.model)
        while not self.is_over:
            try:
                with self._as_training_failed():
                    self._train_epoch(trial)
            finally:
                self.log_steps(trial)
            with self._as_training_failed():
                weights = self.data.update_weights(self.trainer, self.step - len(self.losses), len(self.losses))
                metrics = self.epoch_metrics(self.evaluate("val"), weights)
            try:
                metrics = self._callbacks.end_epoch(trial, self._judged, metrics, self.step)
            except Stopped as stopped:
                self.is_stopped, metrics = True, stopped.metrics
            with self._as_training_failed():
                self.finish_epoch(metrics, lambda: copied(self._judged.state_dict()))
            trial.report(self.epoch, metrics)
            if trial.should_save and not (trial.should_stop and self.is_over):
                trial.save(self.epoch, self.state_dict())
        if self._callbacks:
            self._load_best()
            self._of_callbacks = self._callbacks.end(trial, self.model, self.step)

    @contextmanager
    def _as_training_failed(self) -> Iterator[None]:
        """Turn any error of the model or of torch into TrainingFailed. An OSError, such as a full disk, passes."""
        try:
            yield
        except (SweepError, OSError):
            raise
        except Exception as error:
            failure = loading_failure(error) or error
            kind = "" if isinstance(failure, LoadingFailed) else f"{type(error).__name__}: "
            raise TrainingFailed(f"{kind}{one_line(failure)}", self.step + len(self._pending) + 1) from error

    @contextmanager
    def _losses_of_workers(self) -> Iterator[None]:
        """Turn torch's error about a dead worker process into TrainingFailed, wherever its signal handler raises it."""
        try:
            yield
        except RuntimeError as error:
            if (failure := loading_failure(error)) is None:
                raise
            raise TrainingFailed(str(failure), self.step + len(self._pending) + 1) from error

    def _train_epoch(self, trial: Trial) -> None:
        saves_inside = self.trainer.checkpoint_interval_s > 0
        self.start_epoch()
        self.model.train()
        self._switch_optimizer("train")
        updates = self.data.updates(self.trainer, self.step)
        for row, of_update in zip(self.schedule.rows[len(self.losses) :], updates, strict=False):
            self._pending.append(self._update(row, of_update))
            if len(self._pending) == self._sync_every:
                self._read_losses()
            if trial.should_save if saves_inside else trial.should_stop:
                trial.save(self.epoch, self.state_dict())
        self._read_losses()

    def _update(self, row: Row, of_update: list[Batch]) -> Tensor:
        """Do one optimizer update and return the mean loss over its samples, shape (), still on the device.

        of_update: its batches. The gradient is the mean over all of their samples.
        """
        for group, values in zip(self.optimizer.param_groups, self.schedule.scaled(row), strict=True):
            group.update(values)
        self._forget_gradients()
        loss = self._gradients(of_update)
        if self.trainer.clip_value is not None or self.trainer.clip_norm is not None:
            self._scaler.unscale_(self.optimizer)
        if self.trainer.clip_value is not None:
            nn.utils.clip_grad_value_(self.model.parameters(), self.trainer.clip_value)
        if self.trainer.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.trainer.clip_norm)
        self._scaler.step(self.optimizer)  # unless the precision is fp16, only optimizer.step()
        self._scaler.update()
        if self._average is not None:
            self._average.update_parameters(self.model)
        return loss

    def _forget_gradients(self) -> None:
        """Do what `optimizer.zero_grad` does: torch's own takes 8 microseconds more, for a mark in profiles."""
        if type(self.optimizer).zero_grad is not Optimizer.zero_grad:
            self.optimizer.zero_grad()
            return
        for group in self.optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = None

    def _gradients(self, of_update: list[Batch]) -> Tensor:
        """Add the gradient of the mean loss over the samples of all batches. Return that loss, detached."""
        if len(of_update) == 1:
            return self._backward(self._loss(of_update[0]))
        losses = []
        for batch, share in zip(of_update, shares(of_update, isinstance(self.task, TensorTask)), strict=True):
            losses.append(self._backward(self._loss(batch) * share))
        return torch.stack(losses).sum()

    def _backward(self, loss: Tensor) -> Tensor:
        """Add the gradient of a loss to those of the weights. Return the loss, detached."""
        self._scaler.scale(loss).backward()
        return loss.detach()

    def _loss(self, batch: Batch) -> Tensor:
        """Return the mean loss over a batch, of shape ()."""
        if isinstance(self.task, TensorTask):
            x, *labels = batch
            return self.task.loss_of(self.forward(x), *labels)
        with autocast(self.trainer.precision, self.device):
            return self.task.loss(self._module, batch)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, *in_shape) to (B, out_features) in float32, or float64 if the model is; see `in_precision`."""
        return in_precision(self.trainer.precision, self._module, x)

    def evaluate(self, split: str) -> dict[str, float]:
        """Return loss and metrics on `val` or `test`, as `val/loss` and so on: of the average with `trainer.ema`."""
        self._judged.eval()
        self._switch_optimizer("eval")
        return {f"{split}/{name}": value for name, value in self._measured(getattr(self.data, split)).items()}

    def _measured(self, split: Split) -> dict[str, float]:
        if isinstance(self.task, TensorTask):
            return evaluate.evaluate(self._judged_forward, split, self.task)
        with autocast(self.trainer.precision, self.device):
            return evaluate.evaluate_batches(self._judged, split, self.task)

    @property
    def _judged(self) -> nn.Module:
        """The model that is validated and whose best weights are kept: the average of the weights, if there is one."""
        return self.model if self._average is None else self._average.module

    def _judged_forward(self, x: Tensor) -> Tensor:
        return self.forward(x) if self._average is None else in_precision(self.trainer.precision, self._judged, x)

    def _averaged(self, decay: float) -> AveragedModel:
        """Return the average of the weights: m = decay * m + (1 - decay) * w after each update, m = w after the first.

        Buffers, such as running statistics, are copied.
        """
        if self._has_modes:
            raise ConfigError("trainer.ema", "this optimizer averages the weights itself; leave it out")
        try:
            return AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        except Exception as error:  # a copy of your own model may raise anything
            raise ConfigError("trainer.ema", f"the model cannot be copied ({one_line(error)}); leave it out") from error

    @property
    def _has_modes(self) -> bool:
        """Whether the optimizer has `train` and `eval`: a schedule-free optimizer evaluates other weights."""
        return all(callable(getattr(self.optimizer, name, None)) for name in ("train", "eval"))

    def _switch_optimizer(self, mode: str) -> None:
        """Call the optimizer's `train` or `eval` if it has both."""
        if self._has_modes:
            getattr(self.optimizer, mode)()

    def test(self, noise: float | None, see: See | None = None) -> dict[str, float]:
        """Load the best weights into the model and return their metrics.

        These are the metrics on the test split, if there is one, and those that callbacks declare for these weights.

        Args:
            noise: as in `Samples`.
            see: called with each batch of the split and its outputs, if the task is a `TensorTask`.

        Raises:
            TrainingFailed: the model, the loss or a metric raised an error, or a batch cannot be loaded.
        """
        self._load_best()
        with self._as_training_failed():
            return self._tested(noise, see) | self._of_callbacks

    def _tested(self, noise: float | None, see: See | None) -> dict[str, float]:
        if isinstance(self.task, TensorTask):
            return evaluate.test(self.forward, self.data, self.task, noise, see)
        if self.data.test is None:
            return {}
        with autocast(self.trainer.precision, self.device):
            found = evaluate.evaluate_batches(self._module, self.data.test, self.task)
        return {f"test/{name}": value for name, value in found.items()}

    def _load_best(self) -> None:
        assert self.best is not None
        self.model.load_state_dict(self.best.weights)
        self.model.eval()

    def state_dict(self) -> dict[str, Any]:
        """Return a checkpoint's content. Raises Diverged if a loss that was still on the device is not finite."""
        self._read_losses()
        return {
            "kinds": self._kinds(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_states(),
            "scaler": self._scaler.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "callbacks": self._callbacks.state_dict(),
            "data": self.data.state_dict(),
            **self.progress_state(),
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
        if state.get("scaler"):
            self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        if self._callbacks:
            self._callbacks.load_state_dict(state["callbacks"])
        self.data.load_state_dict(state.get("data"))
        self.load_progress(state)
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
