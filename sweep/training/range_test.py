"""The learning-rate range test (Smith 2017): which learning rates to train with, judged from the losses on a ramp.

A model trains while its learning rate grows exponentially. At first the loss hardly changes, then it falls, and in the
end it diverges. The useful rates lie between the one where the loss has begun to fall and the one where most of its
fall is over.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sweep.training.trial import UnrecordedTrial
from sweep.utils.errors import ConfigError

BEGUN, DONE = 0.2, 0.9  # shares of the fall at base_lr and at max_lr (docs/decisions/0019-lr-range-rule.md)
_AT_MOST_OF_MAX = 1 / 3  # upper limit of base_lr / max_lr (Smith 2017 has a third or a quarter)
_WORTH_CALLING_A_FALL = 0.05  # share of the loss at the ramp's start that it must fall by
_BEYOND_CHANCE = 4.0  # standard deviations of an averaged loss that it must fall by
_STILL_LOW = 0.1  # share of the fall that the loss must rise again by, unless it diverges


class RampOver(Exception):
    """The ramp is complete or its loss has diverged, so training further is useless."""


class Ramp(UnrecordedTrial):
    """A trial on a ramp: it collects the losses and learning rates of its updates.

    `losses`, `lrs` and `averages` hold one value an update, up to the ramp's end or the update where the loss diverged.
    An average is exponential, with the correction for its bias to 0 of Adam (Kingma & Ba 2015):
    m_t = k m_(t-1) + (1 - k) loss_t, average_t = m_t / (1 - k^t), where k = 1 - 1 / memory.

    `diverged` becomes true when the average exceeds both `divergence` times its lowest value and the level at first.
    Without the second condition, a loss that came close to 0 would count as diverged too soon. If a loss is not finite,
    the caller that trains the trial must set `diverged`.
    """

    def __init__(self, n_updates: int, memory: float, divergence: float) -> None:
        """Start an empty ramp.

        Args:
            n_updates: the ramp's length.
            memory: how many updates the average reaches back.
            divergence: multiple of the lowest average above which the loss counts as diverged.
        """
        self.losses: list[float] = []
        self.lrs: list[float] = []
        self.averages: list[float] = []
        self.diverged = False
        self.memory = memory
        self._n_updates, self._divergence = n_updates, divergence
        self._kept = 1 - 1 / max(1.0, memory)
        self._mean, self._lowest = 0.0, math.inf

    def log(self, metrics: Mapping[str, float | Sequence[float]], step: int | Sequence[int]) -> None:
        """Take the losses of consecutive updates. Ignore those that were logged before or come after the ramp."""
        losses, lrs = metrics["step/loss"], metrics["step/lr"]
        assert isinstance(losses, Sequence)
        assert isinstance(lrs, Sequence)
        assert isinstance(step, Sequence)
        n_known = len(self.losses) - step[0] + 1
        for loss, lr in zip(losses[n_known:], lrs[n_known:], strict=True):
            if self.is_over:
                return
            self._add(loss, lr)

    @property
    def is_over(self) -> bool:
        return self.diverged or len(self.losses) == self._n_updates

    def _add(self, loss: float, lr: float) -> None:
        self.losses.append(loss)
        self.lrs.append(lr)
        self._mean = self._kept * self._mean + (1 - self._kept) * loss
        average = self._mean / (1 - self._kept ** len(self.losses))
        self.averages.append(average)
        self._lowest = min(self._lowest, average)
        self.diverged = average > self._divergence * self._lowest and average > self.level_at_first

    @property
    def level_at_first(self) -> float:
        """The mean of the first `memory` losses, where the rates are still too low to change anything."""
        return float(np.mean(self.losses[: max(1, math.ceil(self.memory))]))

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Raise RampOver if the rest of the ramp is not needed."""
        if self.is_over:
            raise RampOver


@dataclass(frozen=True)
class Reading:
    """The learning rates found on one ramp. diverged_lr: None if the loss never diverged."""

    base_lr: float
    max_lr: float
    diverged_lr: float | None


def read(ramp: Ramp) -> Reading:
    """Find the bounds on one ramp.

    The fall is the level at first minus the lowest average. `max_lr` is the first rate at which the average has made
    90 % of it. `base_lr` is the rate after the last update at which less than 20 % was made, at most `max_lr` / 3.

    Raises ConfigError, with the key of `lr_range` to change, if the loss diverges at once, shows no clear fall, or does
    not rise again before the ramp ends.
    """
    lrs, means = ramp.lrs, np.array(ramp.averages)
    if len(means) < 2 * ramp.memory + 2:
        raise ConfigError(
            "lr_range.min_lr",
            f"the loss diverges {_at(lrs)}before it could fall; lower it tenfold, or raise lr_range.n_updates",
        )
    first, lowest = ramp.level_at_first, int(means.argmin())
    fall = first - means[lowest]
    if fall < max(_WORTH_CALLING_A_FALL * abs(first), _BEYOND_CHANCE * _noise(ramp)):
        if ramp.diverged:
            raise ConfigError(
                "lr_range.min_lr",
                f"the loss never falls, and diverges {_at(lrs)}: lower it, or raise lr_range.n_updates, unless the "
                "model cannot learn",
            )
        raise ConfigError(
            "lr_range.max_lr",
            f"the loss never falls up to {lrs[-1]:.3g}; raise it, or lr_range.n_updates, unless the model cannot learn",
        )
    if not ramp.diverged and means[-1] - means[lowest] < _STILL_LOW * fall:
        raise ConfigError(
            "lr_range.max_lr", f"the loss does not rise again up to {lrs[-1]:.3g}, where the ramp ends; raise it"
        )
    high = np.flatnonzero(means[:lowest] > first - BEGUN * fall)  # take the last: early losses may be low by chance
    base = int(high[-1]) + 1 if len(high) else 0
    top = max(base, int(np.argmax(means <= first - DONE * fall)))
    return Reading(min(lrs[base], lrs[top] * _AT_MOST_OF_MAX), lrs[top], lrs[-1] if ramp.diverged else None)


@dataclass(frozen=True)
class Interval:
    """The median over ramps, with their lowest and highest value. Each has two digits: more would not be meaningful."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        return cls(*(_two_digits(float(f(values))) for f in (np.median, np.min, np.max)))


@dataclass(frozen=True)
class Suggestion:
    """Bounds to train between, from the `n_ramps` ramps that could be read.

    diverged_lr: None if fewer than half of them diverged.
    """

    base_lr: Interval
    max_lr: Interval
    diverged_lr: Interval | None
    n_ramps: int

    def of(self, key: str) -> Interval:
        """Return the interval for a config key: the bound of that name, or half of `max_lr` for `optimizer.lr`."""
        name = key.rpartition(".")[2]
        if name in ("base_lr", "max_lr"):
            return getattr(self, name)
        return Interval(*(_two_digits(lr / 2) for lr in (self.max_lr.value, self.max_lr.low, self.max_lr.high)))

    def reason(self, keys: Sequence[str]) -> str:
        """Explain in words why these rates are suggested. keys: the config keys that they are for."""
        begun, done = (f"{share * 100:.0f} %" for share in (BEGUN, DONE))
        base, top = self.base_lr.value, self.max_lr.value
        message = f"at {base:g} the averaged loss has made {begun} of its fall, at {top:g} {done}"
        if base > top * _AT_MOST_OF_MAX * 0.97:
            message = (
                f"at {top:g} the averaged loss has made {done} of its fall, all at once; {base:g} is a third of that"
            )
        if keys == ["optimizer.lr"]:
            message += f", and optimizer.lr is half of {top:g}"
        if self.diverged_lr is None:
            return f"{message}; it does not diverge on this ramp"
        times = self.diverged_lr.value / self.max_lr.value
        return f"{message}; it diverges at {self.diverged_lr.value:g}, {times:.2g} times as high"


def suggest(ramps: Sequence[Ramp]) -> Suggestion:
    """Combine the ramps into one suggestion. Raises the first one's ConfigError if half or more cannot be read."""
    readings, problems = [], []
    for ramp in ramps:
        try:
            readings.append(read(ramp))
        except ConfigError as problem:
            problems.append(problem)
    if len(problems) >= max(1, len(ramps) / 2):
        raise problems[0]
    diverged = [r.diverged_lr for r in readings if r.diverged_lr is not None]
    return Suggestion(
        base_lr=Interval.of([r.base_lr for r in readings]),
        max_lr=Interval.of([r.max_lr for r in readings]),
        diverged_lr=Interval.of(diverged) if 2 * len(diverged) >= len(readings) else None,
        n_ramps=len(readings),
    )


def _noise(ramp: Ramp) -> float:
    """Estimate the standard deviation of the averaged loss that batches cause, from the first quarter of the ramp.

    The mean squared difference between neighbouring losses is twice the variance of a loss (von Neumann 1941). It is
    robust to a slow trend. An exponential mean over `memory` losses has 1 / (2 * memory - 1) of that variance.
    """
    steps = np.diff(ramp.losses[: max(4, len(ramp.losses) // 4)])
    return float(np.sqrt(np.mean(steps**2) / 2 / (2 * ramp.memory - 1)))


def _at(lrs: Sequence[float]) -> str:
    return f"at {lrs[-1]:.3g} " if lrs else ""


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")
