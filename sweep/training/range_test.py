"""The learning-rate range test (Smith 2017): what the losses on a ramp of rates say of the rates to train with.

A model trains while its learning rate grows exponentially. The loss stands still, falls, and in the end diverges; worth
training between are the rate at which it has begun to fall and the one beyond which it hardly falls any more.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sweep.training.trial import UnrecordedTrial
from sweep.utils.errors import ConfigError

BEGUN, DONE = 0.2, 0.9  # of the whole fall: where base_lr and max_lr are (docs/decisions/0019-lr-range-rule.md)
_AT_MOST_OF_MAX = 1 / 3  # base_lr (Smith 2017 has it a third or a quarter)
_WORTH_CALLING_A_FALL = 0.05  # of the loss that the ramp begins with
_BEYOND_CHANCE = 4.0  # standard deviations of an averaged loss
_STILL_LOW = 0.1  # of the fall


class RampOver(Exception):
    """The loss has diverged; what is left of the ramp has nothing to tell."""


class Ramp(UnrecordedTrial):
    """A trial on a ramp. losses, lrs, averages: one an update, to its end or to where the loss diverged.

    memory: updates that an average reaches back, exponentially, without its bias to 0 (as Kingma & Ba 2015).
    diverged: whether the averaged loss has come above `divergence` times its lowest and above what it was at first, so
    that a loss near 0 may leave it; who trains the trial sets it for a loss that left the finite numbers.
    """

    def __init__(self, n_updates: int, memory: float, divergence: float) -> None:
        self.losses: list[float] = []
        self.lrs: list[float] = []
        self.averages: list[float] = []
        self.diverged = False
        self.memory = memory
        self._n_updates, self._divergence = n_updates, divergence
        self._kept = 1 - 1 / max(1.0, memory)
        self._mean, self._lowest = 0.0, math.inf

    def log(self, metrics: Mapping[str, float | Sequence[float]], step: int | Sequence[int]) -> None:
        """Take the losses of consecutive updates, but for those that were logged before, or are behind the ramp."""
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
        """The mean of the first losses, at rates so low that nothing has changed yet."""
        return float(np.mean(self.losses[: max(1, math.ceil(self.memory))]))

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Raises RampOver where the rest would be for nothing."""
        if self.is_over:
            raise RampOver


@dataclass(frozen=True)
class Reading:
    """What one ramp says. diverged_lr: None where the loss never diverged."""

    base_lr: float
    max_lr: float
    diverged_lr: float | None


def read(ramp: Ramp) -> Reading:
    """Raises ConfigError, with the key of `lr_range` to change, for a ramp that says nothing."""
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
    high = np.flatnonzero(means[:lowest] > first - BEGUN * fall)  # the first losses may be low by chance
    base = int(high[-1]) + 1 if len(high) else 0
    top = max(base, int(np.argmax(means <= first - DONE * fall)))
    return Reading(min(lrs[base], lrs[top] * _AT_MOST_OF_MAX), lrs[top], lrs[-1] if ramp.diverged else None)


@dataclass(frozen=True)
class Interval:
    """The median over ramps, and between which values theirs lie; two digits each, as it is no exact science."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        return cls(*(_two_digits(float(f(values))) for f in (np.median, np.min, np.max)))


@dataclass(frozen=True)
class Suggestion:
    """Bounds to train between, from `n_ramps` of the ramps. diverged_lr: None where fewer than half diverged."""

    base_lr: Interval
    max_lr: Interval
    diverged_lr: Interval | None
    n_ramps: int

    def of(self, key: str) -> Interval:
        """For a config key: the bound of that name, or for `optimizer.lr` half of `max_lr`."""
        name = key.rpartition(".")[2]
        if name in ("base_lr", "max_lr"):
            return getattr(self, name)
        return Interval(*(_two_digits(lr / 2) for lr in (self.max_lr.value, self.max_lr.low, self.max_lr.high)))

    def reason(self, keys: Sequence[str]) -> str:
        """Why these, of these config keys, in words."""
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
    """What most of the ramps say. Raises ConfigError, that of the first, where half of them or more say nothing."""
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
    """The standard deviation of an averaged loss from batch to batch, told from steps between the first losses.

    The variance of a step between neighbours is twice that of a loss (von Neumann 1941), and the running mean over
    `memory` losses has one of 2 * memory - 1 times less.
    """
    steps = np.diff(ramp.losses[: max(4, len(ramp.losses) // 4)])
    return float(np.sqrt(np.mean(steps**2) / 2 / (2 * ramp.memory - 1)))


def _at(lrs: Sequence[float]) -> str:
    return f"at {lrs[-1]:.3g} " if lrs else ""


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")
