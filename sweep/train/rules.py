"""Optimizer rules for stacked weights: one update of many trials, each with hyperparameters of its own.

Stacked tensors are (K, P): a trial a row, all its weights one after the other. A rule mirrors the update of its class
in torch.optim, whose docstrings name the papers. What depends on numbers alone (schedules, bias corrections) is worked
out for whole epochs in float64, as torch does, and reaches the update as columns of (K, 1).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

Group = Mapping[str, Any]  # a parameter group of torch's optimizer
Table = dict[str, NDArray[Any]]  # per coefficient: (n,), one value an update
Columns = Mapping[str, Tensor]  # the same for one update of all trials: (K, 1) each


class Rule(ABC):
    """One kind of update. Trials whose rules are equal may share a pass: they differ in numbers only."""

    made_by: ClassVar[tuple[type[Optimizer], ...]]
    flags: ClassVar[tuple[str, ...]] = ("maximize",)  # of a parameter group, that change what is computed
    optional: ClassVar[tuple[str, ...]] = ("weight_decay",)  # numbers that change it when they are 0
    scalars: ClassVar[Mapping[str, float]] = {}  # numbers in the state, by torch's names, as they begin

    def __init__(self, group: Group) -> None:
        self._signs = tuple(bool(group.get(name)) for name in (*self.flags, *self.optional))
        self._uses = dict(zip((*self.flags, *self.optional), self._signs, strict=True))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._signs == other._signs  # pyright: ignore

    def __hash__(self) -> int:
        return hash((type(self), self._signs))

    @property
    @abstractmethod
    def state(self) -> tuple[str, ...]:
        """Names of the stacked tensors that it keeps, as in torch's state."""

    def initial(self, name: str, group: Group) -> float:
        """What a tensor of the state is filled with at first."""
        return 0.0

    @abstractmethod
    def table(self, group: Group, scheduled: Table, steps: NDArray[Any]) -> Table:
        """The coefficients of one trial's next updates, number `steps` (from 1).

        group: the trial's, with the `scalars` as they are. scheduled: what the scheduler sets in these updates: `lr`,
        and where it has them `momentum` or `beta1` and `beta2`.
        """

    @abstractmethod
    def update(self, w: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Columns) -> None:
        """Changes weights `w` and `state` in place; `g`, their gradient, is not needed afterwards."""

    def _prepared(self, w: Tensor, g: Tensor, c: Columns) -> Tensor:
        """The gradient, with its sign and the weight decay that torch adds to it."""
        if self._uses["maximize"]:
            g = -g
        return g.addcmul(w, c["weight_decay"]) if self._uses["weight_decay"] else g


class SGDRule(Rule):
    made_by = (SGD,)
    flags = ("maximize", "nesterov")
    optional = ("weight_decay", "momentum")

    @property
    def state(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self._uses["momentum"] else ()

    def table(self, group: Group, scheduled: Table, steps: NDArray[Any]) -> Table:
        momentum = scheduled.get("momentum", np.full(len(steps), group["momentum"]))
        undamped = (steps == 1) | (momentum == 0)  # the buffer begins as the gradient itself
        return {
            "lr": scheduled["lr"],
            "weight_decay": np.full(len(steps), group["weight_decay"]),
            "momentum": momentum,
            "kept": np.where(undamped, 1.0, 1 - group["dampening"]),
        }

    def update(self, w: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Columns) -> None:
        g = self._prepared(w, g, c)
        if self._uses["momentum"]:
            buffer = state["momentum_buffer"].mul_(c["momentum"]).addcmul_(g, c["kept"])
            g = g.addcmul(buffer, c["momentum"]) if self._uses["nesterov"] else buffer
        w.addcmul_(g, c["lr"], value=-1)


class _MomentsRule(Rule):
    """What Adam and its kin share: running means of the gradient and of its square."""

    @property
    def state(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def table(self, group: Group, scheduled: Table, steps: NDArray[Any]) -> Table:
        n = len(steps)
        beta1 = scheduled.get("beta1", np.full(n, group["betas"][0]))
        beta2 = scheduled.get("beta2", np.full(n, group["betas"][1]))
        return {
            "weight_decay": np.full(n, group["weight_decay"]),
            "shrink": 1 - scheduled["lr"] * group["weight_decay"],
            "eps": np.full(n, group["eps"]),
            "rest1": 1 - beta1,
            "beta2": beta2,
            "rest2": 1 - beta2,
            **self._steps(group, scheduled["lr"], beta1, beta2, steps),
        }

    @abstractmethod
    def _steps(
        self, group: Group, lr: NDArray[Any], beta1: NDArray[Any], beta2: NDArray[Any], t: NDArray[Any]
    ) -> Table: ...

    def _moments(self, w: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Columns) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient with its decay, and both running means brought up to date."""
        if self._uses["weight_decay"] and self._uses.get("decoupled_weight_decay"):
            g = -g if self._uses["maximize"] else g
            w.mul_(c["shrink"])
        else:
            g = self._prepared(w, g, c)
        mean = state["exp_avg"].lerp_(g, c["rest1"])
        square = state["exp_avg_sq"].mul_(c["beta2"]).addcmul_(g, g * c["rest2"])
        return g, mean, square


class AdamRule(_MomentsRule):
    made_by = (Adam, AdamW)
    flags = ("maximize", "amsgrad", "decoupled_weight_decay")

    @property
    def state(self) -> tuple[str, ...]:
        return (*super().state, "max_exp_avg_sq") if self._uses["amsgrad"] else super().state

    def _steps(
        self, group: Group, lr: NDArray[Any], beta1: NDArray[Any], beta2: NDArray[Any], t: NDArray[Any]
    ) -> Table:
        return {"size": lr / (1 - beta1**t), "correction": np.sqrt(1 - beta2**t)}

    def update(self, w: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Columns) -> None:
        _, mean, square = self._moments(w, g, state, c)
        if self._uses["amsgrad"]:
            largest = state["max_exp_avg_sq"]
            square = torch.maximum(largest, square, out=largest)
        scale = square.sqrt().div_(c["correction"]).add_(c["eps"])
        w.addcdiv_(mean * c["size"], scale, value=-1)


class NAdamRule(_MomentsRule):
    made_by = (NAdam,)
    flags = ("maximize", "decoupled_weight_decay")
    scalars: ClassVar[Mapping[str, float]] = {"mu_product": 1.0}

    def _steps(
        self, group: Group, lr: NDArray[Any], beta1: NDArray[Any], beta2: NDArray[Any], t: NDArray[Any]
    ) -> Table:
        decay = group["momentum_decay"]
        mu = beta1 * (1 - 0.5 * 0.96 ** (t * decay))
        mu_next = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * decay))
        product = self._products(group, mu)
        return {
            "of_gradient": lr * (1 - mu) / (1 - product),
            "of_mean": lr * mu_next / (1 - product * mu_next),
            "correction2": 1 - beta2**t,
            "mu_product": product,
        }

    @staticmethod
    def _products(group: Group, mu: NDArray[Any]) -> NDArray[Any]:
        """Running products of mu, in the precision that torch keeps them in."""
        dtype = np.float64 if torch.get_default_dtype() == torch.float64 else np.float32
        return np.multiply.accumulate(np.array([group["mu_product"], *mu], dtype))[1:].astype(np.float64)

    def update(self, w: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Columns) -> None:
        g, mean, square = self._moments(w, g, state, c)
        scale = square.div(c["correction2"]).sqrt_().add_(c["eps"])
        w.addcdiv_(g * c["of_gradient"], scale, value=-1)
        w.addcdiv_(mean * c["of_mean"], scale, value=-1)


class RAdamRule(_MomentsRule):
    made_by = (RAdam,)
    flags = ("maximize", "decoupled_weight_decay")

    def _steps(
        self, group: Group, lr: NDArray[Any], beta1: NDArray[Any], beta2: NDArray[Any], t: NDArray[Any]
    ) -> Table:
        correction2 = 1 - beta2**t
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * t * beta2**t / correction2
        rectified = length > 5
        with np.errstate(all="ignore"):  # where it is not rectified
            ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            rectifier = np.sqrt(np.where(rectified, ratio, 0.0))
        return {
            "size": lr / (1 - beta1**t),
            "rectifier": rectifier * np.sqrt(correction2),
            "plain": 1.0 - rectified,
        }

    def update(self, w: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Columns) -> None:
        _, mean, square = self._moments(w, g, state, c)
        adapted = torch.where(c["plain"] > 0, 1.0, c["rectifier"] / square.sqrt().add_(c["eps"]))
        w.addcmul_(mean * c["size"], adapted, value=-1)


class RMSpropRule(Rule):
    made_by = (RMSprop,)
    flags = ("maximize", "centered")
    optional = ("weight_decay", "momentum")

    @property
    def state(self) -> tuple[str, ...]:
        names = {"square_avg": True, "momentum_buffer": self._uses["momentum"], "grad_avg": self._uses["centered"]}
        return tuple(name for name, used in names.items() if used)

    def table(self, group: Group, scheduled: Table, steps: NDArray[Any]) -> Table:
        n = len(steps)
        constant = {name: np.full(n, group[name]) for name in ("weight_decay", "alpha", "eps", "momentum")}
        return {**constant, "rest": 1 - constant["alpha"], **scheduled}

    def update(self, w: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Columns) -> None:
        g = self._prepared(w, g, c)
        square = state["square_avg"].mul_(c["alpha"]).addcmul_(g, g * c["rest"])
        if self._uses["centered"]:
            mean = state["grad_avg"].lerp_(g, c["rest"])
            scale = square.addcmul(mean, mean, value=-1).sqrt_().add_(c["eps"])
        else:
            scale = square.sqrt().add_(c["eps"])
        if self._uses["momentum"]:
            w.addcmul_(state["momentum_buffer"].mul_(c["momentum"]).addcdiv_(g, scale), c["lr"], value=-1)
        else:
            w.addcdiv_(g * c["lr"], scale, value=-1)


class AdagradRule(Rule):
    made_by = (Adagrad,)

    @property
    def state(self) -> tuple[str, ...]:
        return ("sum",)

    def initial(self, name: str, group: Group) -> float:
        return group["initial_accumulator_value"]

    def table(self, group: Group, scheduled: Table, steps: NDArray[Any]) -> Table:
        n = len(steps)
        return {
            "lr": scheduled["lr"] / (1 + (steps - 1) * group["lr_decay"]),
            "weight_decay": np.full(n, group["weight_decay"]),
            "eps": np.full(n, group["eps"]),
        }

    def update(self, w: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Columns) -> None:
        g = self._prepared(w, g, c)
        scale = state["sum"].addcmul_(g, g).sqrt().add_(c["eps"])
        w.addcdiv_(g * c["lr"], scale, value=-1)


_RULES = (SGDRule, AdamRule, NAdamRule, RAdamRule, RMSpropRule, AdagradRule)


def rule_of(optimizer: Optimizer) -> Rule | None:
    """The rule that updates as this optimizer does; None where there is none, or groups of parameters differ."""
    if len(optimizer.param_groups) != 1 or optimizer.param_groups[0].get("differentiable"):
        return None
    for rule in _RULES:
        if type(optimizer) in rule.made_by:
            return rule(optimizer.param_groups[0])
    return None
