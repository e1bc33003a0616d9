"""The course of one trial: how far it has come, its losses and its best epoch, whether it trains alone or in a pack."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sweep.config.metrics import direction_of, sign_of
from sweep.config.nodes import Trainer, steps_per_epoch
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
    """What changes while a trial trains, but for its tensors and its random generators."""

    def __init__(self, schedule: Schedule, trainer: Trainer, n_train: int, step_points: int | None = None) -> None:
        """step_points: the most points of a curve over the steps that are recorded; None for all."""
        self.schedule, self.trainer = schedule, trainer
        self._n_train = n_train
        self.n_updates = steps_per_epoch(n_train, trainer.batch_size)  # an epoch
        self.epoch = 0  # finished
        self.step = 0  # finished
        self.losses: list[float] = []  # of the epoch in progress, one an update
        self._stride = stride(self.n_updates * trainer.epochs, step_points)
        self.best: Best | None = None
        self._sign = sign_of(direction_of(trainer.monitored))
        self._milestone = (0, math.inf)  # epoch and signed value of the last improvement that patience counts

    @property
    def is_over(self) -> bool:
        """Whether all epochs are trained, or patience has ended."""
        patience = self.trainer.patience
        impatient = patience is not None and self.epoch - self._milestone[0] >= patience
        return self.epoch >= self.trainer.epochs or impatient

    def start_epoch(self) -> None:
        """Has the schedule ready; nothing to do where a checkpoint from inside the epoch was loaded."""
        if not self.losses:
            self.schedule.start_epoch(self.n_updates)

    def record(self, losses: Sequence[float]) -> None:
        """Losses of the next updates. Raises Diverged at the first that is not finite."""
        for value in losses:
            if not math.isfinite(value):
                lr = self.schedule.rows[len(self.losses)][0]["lr"]
                raise Diverged("train/loss", value, self.step + 1, lr, self._advice())
            self.losses.append(value)
            self.step += 1

    def log_steps(self, trial: Trial) -> None:
        """Log losses and learning rates of the epoch in progress; one that diverged is worth seeing too."""
        if self._stride and self.losses:
            first = self.epoch * self.n_updates + 1
            points = slice(-(first - 1) % self._stride, len(self.losses), self._stride)  # the first step is always one
            steps = range(first, first + len(self.losses))[points]
            trial.log({"step/loss": self.losses[points], "step/lr": self._lrs()[points]}, steps)

    def reached(self) -> dict[str, float]:
        """Return the best epoch so far and its value, as they are recorded."""
        monitored = self.trainer.monitored.replace("/", "_")
        return {} if self.best is None else {"best/epoch": self.best.epoch, f"best/{monitored}": self.best.value}

    def finish_epoch(self, val: dict[str, float], weights: Callable[[], dict[str, Tensor]]) -> dict[str, float]:
        """Keeps the weights, of which it asks for a copy, if they are the best so far, and moves on.

        val: metrics on the validation split. Returns the epoch's metrics. Raises Diverged if one is not finite.
        """
        lr = self._lrs()[-1]
        if not is_finite(val):
            name = next(name for name, value in val.items() if not math.isfinite(value))
            raise Diverged(name, val[name], self.step, lr, self._advice())
        metrics = {"train/loss": self._mean_loss(), **val, "lr": lr}
        value = metrics[self.trainer.monitored]
        self.schedule.end_epoch(value)
        self.epoch += 1
        self.losses = []
        if self.best is None or self._sign * value < self._sign * self.best.value:
            self.best = Best(self.epoch, value, weights())
        if self._sign * value < self._milestone[1] - self.trainer.min_delta:
            self._milestone = (self.epoch, self._sign * value)
        return metrics

    def course_state(self) -> dict[str, Any]:
        return {
            "schedule": self.schedule.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "losses": self.losses,
            "best": None if self.best is None else vars(self.best),
            "milestone": self._milestone,
        }

    def load_course_state(self, state: dict[str, Any]) -> None:
        """All of `course_state` but the schedule's, which is loaded with the other parts that may not fit."""
        self.epoch, self.step, self.losses = state["epoch"], state["step"], state["losses"]
        self.best = None if state["best"] is None else Best(**state["best"])
        self._milestone = tuple(state["milestone"])

    def _advice(self) -> str:
        """Return what to do about a loss that is not finite."""
        if self.schedule.optimizer.param_groups[0].get("eps") == 0:  # a gradient of 0 is divided by 0
            return "set optimizer.eps above 0, such as 1e-8; if it still diverges, lower the learning rate"
        return "lower the learning rate"

    def _lrs(self) -> list[float]:
        """Learning rates of the updates in `losses`, of the first parameter group."""
        return [row[0]["lr"] for row in self.schedule.rows[: len(self.losses)]]

    def _mean_loss(self) -> float:
        size = self.trainer.batch_size
        last = self._n_train - size * (self.n_updates - 1)  # the last batch may be smaller
        return (sum(self.losses[:-1]) * size + self.losses[-1] * last) / self._n_train


def stride(n_steps: int, most: int | None) -> int:
    """Return n to record every n-th step, so that there are at most `most` points; 0 to record none."""
    if most is None:
        return 1
    return max(1, -(-n_steps // most)) if most else 0
