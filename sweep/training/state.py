"""The progress of one trial: its position, its losses and its best epoch. The loop and the pack share it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sweep.config.epochs import n_reports, n_steps, report_steps, steps_per_epoch, validation_steps
from sweep.config.metrics import sign_of
from sweep.config.nodes import Trainer
from sweep.training.evaluate import is_finite
from sweep.training.schedule import Schedule
from sweep.training.trial import Trial
from sweep.utils.errors import Diverged


@dataclass
class Best:
    """The epoch with the best value of `trainer.monitored` so far, and its weights."""

    epoch: int
    value: float
    weights: dict[str, Tensor]


class TrainState:
    """Everything that changes while a trial trains, except its tensors and its random generators."""

    def __init__(
        self,
        schedule: Schedule,
        trainer: Trainer,
        n_train: int,
        direction: str = "minimize",
        step_points: int | None = None,
    ) -> None:
        """Start before the first epoch.

        Args:
            schedule: gives the learning rate of each update.
            trainer: the settings of the training.
            n_train: training samples in an epoch.
            direction: minimize or maximize, for the curve that `trainer.monitored` names.
            step_points: how many points of a curve over the steps are recorded at most; None for all.
        """
        self.schedule, self.trainer = schedule, trainer
        self._n_train = n_train
        self.n_updates = steps_per_epoch(n_train, trainer.update_size)  # in each epoch
        self.epoch = 0  # the last report; with `val_interval` in steps, reports are numbered instead of epochs
        self.step = 0  # the last finished
        self.losses: list[float] = []  # since the last report, one an update
        self.is_stopped = False  # by a callback
        self._stride = stride(n_steps(trainer, n_train), step_points)
        self.best: Best | None = None
        self.direction = direction
        self._sign = sign_of(direction)
        self._milestone = (0, math.inf)  # epoch and signed value of the last improvement that patience counts

    @property
    def is_over(self) -> bool:
        """Whether all epochs are trained, patience has ended or a callback stopped."""
        patience = self.trainer.patience
        impatient = patience is not None and self.epoch - self._milestone[0] >= patience
        return self.epoch >= self.n_epochs or impatient or self.is_stopped

    @property
    def n_epochs(self) -> int:
        """The number of the last report, unless training ends earlier."""
        return n_reports(self.trainer, self._n_train)

    def start_epoch(self) -> None:
        """Prepare the schedule for the updates up to the next validation."""
        if self.losses:  # a checkpoint from inside the epoch was loaded, which includes the schedule's rows
            return
        left = n_steps(self.trainer, self._n_train) - self.step
        n_updates = min(validation_steps(self.trainer, self._n_train), left)
        in_epoch = self.n_updates - self.step % self.n_updates  # what the epoch in progress has left
        self.schedule.start_epoch(n_updates, range(in_epoch, n_updates, self.n_updates))

    def record(self, losses: Sequence[float]) -> None:
        """Append the losses of the next updates. Raises Diverged at the first that is not finite."""
        for value in losses:
            if not math.isfinite(value):
                lr = self.schedule.rows[len(self.losses)][0]["lr"]
                raise Diverged("train/loss", value, self.step + 1, lr, self._advice())
            self.losses.append(value)
            self.step += 1

    def log_steps(self, trial: Trial) -> None:
        """Log the losses and learning rates of the epoch in progress, even if it diverged."""
        if self._stride and self.losses:
            first = self.step - len(self.losses) + 1
            points = slice(-(first - 1) % self._stride, len(self.losses), self._stride)  # step 1 is always among them
            steps = range(first, first + len(self.losses))[points]
            trial.log({"step/loss": self.losses[points], "step/lr": self._lrs()[points]}, steps)

    def reached(self) -> dict[str, float]:
        """Return the best epoch so far and its value under the names that are recorded, such as `best/val_loss`."""
        monitored = self.trainer.monitored.replace("/", "_")
        return {} if self.best is None else {"best/epoch": self.best.epoch, f"best/{monitored}": self.best.value}

    def epoch_metrics(self, val: dict[str, float], update_weights: Sequence[float] | None = None) -> dict[str, float]:
        """Return the metrics of the epoch in progress.

        Args:
            val: those on the validation split.
            update_weights: the sum of the samples' weights in each update; None if all samples count the same.

        Raises:
            Diverged: a metric is not finite.
        """
        lr = self._lrs()[-1]
        if not is_finite(val):
            name = next(name for name, value in val.items() if not math.isfinite(value))
            raise Diverged(name, val[name], self.step, lr, self._advice())
        return {"train/loss": self._mean_loss(update_weights), **val, "lr": lr}

    def finish_epoch(self, metrics: dict[str, float], weights: Callable[[], dict[str, Tensor]]) -> None:
        """Finish the epoch in progress after its validation.

        Args:
            metrics: as `epoch_metrics` returns them, with those of callbacks.
            weights: returns a copy of the weights. It is called only if they are the best so far.
        """
        value = metrics[self.trainer.monitored]
        self.schedule.end_epoch(value, ends=self.step % self.n_updates == 0)
        self.epoch = -(-self.step // report_steps(self.trainer, self._n_train))
        self.losses = []
        if self.best is None or self._sign * value < self._sign * self.best.value:
            self.best = Best(self.epoch, value, weights())
        if self._sign * value < self._milestone[1] - self.trainer.min_delta:
            self._milestone = (self.epoch, self._sign * value)

    def progress_state(self) -> dict[str, Any]:
        """Return what a checkpoint needs of this state."""
        return {
            "schedule": self.schedule.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "losses": self.losses,
            "best": None if self.best is None else vars(self.best),
            "milestone": self._milestone,
            "stopped": self.is_stopped,
        }

    def load_progress(self, state: dict[str, Any]) -> None:
        """Load all of `progress_state` except the schedule. That one may not fit, so the caller loads and checks it."""
        self.epoch, self.step, self.losses = state["epoch"], state["step"], state["losses"]
        self.best = None if state["best"] is None else Best(**state["best"])
        self._milestone = tuple(state["milestone"])
        self.is_stopped = state.get("stopped", False)  # earlier versions had no callbacks

    def _advice(self) -> str:
        """Return what the user can do about a loss that is not finite."""
        if self.schedule.optimizer.param_groups[0].get("eps") == 0:  # then a gradient of 0 gives 0 / 0
            return "set optimizer.eps above 0, such as 1e-8; if it still diverges, lower the learning rate"
        return "lower the learning rate"

    def _lrs(self) -> list[float]:
        """Return the first parameter group's learning rate at each update in `losses`."""
        return [row[0]["lr"] for row in self.schedule.rows[: len(self.losses)]]

    def _mean_loss(self, update_weights: Sequence[float] | None) -> float:
        """Return the mean loss over samples since the last report: each update's is weighted by its samples."""
        if update_weights is not None:
            products = [loss * weight for loss, weight in zip(self.losses, update_weights, strict=True)]
            return sum(products) / (sum(update_weights) or 1.0)  # 0 if all weights are 0
        size, first = self.trainer.update_size, self.step - len(self.losses) + 1
        last = self._n_train - size * (self.n_updates - 1)  # the last update of an epoch may have fewer
        lasts = slice(-first % self.n_updates, None, self.n_updates)
        full, short = [*self.losses], self.losses[lasts]
        del full[lasts]
        return (sum(full) * size + sum(short) * last) / (len(full) * size + len(short) * last)


def stride(n_steps: int, most: int | None) -> int:
    """Return n to record every n-th step, so that there are at most `most` points; 0 to record none."""
    if most is None:
        return 1
    return max(1, -(-n_steps // most)) if most else 0
