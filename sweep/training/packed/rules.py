"""The rules of torch's optimizers: one update of many trials, each with its own hyperparameters (see `Rule`).

A rule computes the same update as its class in torch.optim. In the formulas, w are weights, g is their gradient after
weight decay, t counts updates from 1, and b1 and b2 are the betas. Products and roots are elementwise.
"""

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

from sweep.training.packed.rule import Columns, Group, Rule, Table, numbers
from sweep.utils.errors import TrainingFailed


class _MomentumRule(Rule):
    """The common part of SGD and RMSprop: a momentum buffer. An update with momentum 0 neither reads nor writes it.

    If the schedule cannot change the momentum, whether there is a buffer is fixed. Otherwise the column `uses` says for
    each trial whether this update has momentum, and the scalar `begun` whether the buffer exists yet.
    """

    optional = ("weight_decay", "momentum")

    def __init__(self, group: Group, changing: Collection[str] = ()) -> None:
        super().__init__(group, changing)
        self.scalars = {"begun": 0.0} if self._changes["momentum"] else {}

    def loaded(self, of_one: Mapping[str, Any]) -> dict[str, float]:
        return {name: float(of_one.get("momentum_buffer") is not None) for name in self.scalars}

    def kept(self, scalars: Mapping[str, float]) -> tuple[dict[str, float], tuple[str, ...]]:
        begun = scalars.get("begun", 1.0)
        return {}, tuple(name for name in self.state if begun or name != "momentum_buffer")

    def _buffered(self, buffer: Tensor, g: Tensor, c: Columns) -> Tensor:
        """Return the momentum buffer, or `g` in rows that have no momentum in this update."""
        return torch.where(c["uses"] > 0, buffer, g) if self._changes["momentum"] else buffer


class SGDRule(_MomentumRule):
    """b = momentum * b + (1 - dampening) * g; w -= lr * b (Polyak 1964). The buffer b begins as g itself.

    With `nesterov`, w -= lr * (g + momentum * b) (Sutskever et al. 2013).
    """

    made_by = (SGD,)
    flags = ("maximize", "nesterov")

    @property
    def state(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self._uses["momentum"] else ()

    def table(self, group: Group, scheduled: Table, steps: NDArray[Any]) -> Table:
        found = numbers(group, scheduled, steps, "lr", "weight_decay", "momentum", "dampening")
        momentum, dampening = found["momentum"], found.pop("dampening")
        if not self._changes["momentum"]:
            return {**found, "decay": momentum, "kept": np.where(steps == 1, 1.0, 1 - dampening)}
        uses = momentum != 0
        n_used = np.cumsum(uses) + group["begun"]
        kept = np.where(n_used == 1, 1.0, 1 - dampening)  # first use: the buffer becomes g, without dampening
        return {
            **found,
            "uses": uses * 1.0,
            "decay": np.where(uses, momentum, 1.0),
            "kept": np.where(uses, kept, 0.0),
            "begun": (n_used > 0) * 1.0,
        }

    def update(self, w: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Columns) -> None:
        g = self._prepared(w, g, c)
        if self._uses["momentum"]:
            buffer = state["momentum_buffer"].mul_(c["decay"]).addcmul_(g, c["kept"])
            g = g.addcmul(buffer, c["momentum"]) if self._uses["nesterov"] else self._buffered(buffer, g, c)
        w.addcmul_(g, c["lr"], value=-1)


class _MomentsRule(Rule):
    """The common part of Adam's family: m = b1 m + (1 - b1) g and v = b2 v + (1 - b2) g^2, both from 0.

    Weight decay is added to g, or with `decoupled_weight_decay` w *= 1 - lr * weight_decay (Loshchilov & Hutter 2019).
    """

    more: ClassVar[tuple[str, ...]] = ()  # names of further numbers of a subclass

    @property
    def state(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def table(self, group: Group, scheduled: Table, steps: NDArray[Any]) -> Table:
        group = {**group, "beta1": group["betas"][0], "beta2": group["betas"][1]}
        found = numbers(group, scheduled, steps, "lr", "beta1", "beta2", "weight_decay", "eps", *self.more)
        return {
            "weight_decay": found["weight_decay"],
            "shrink": 1 - found["lr"] * found["weight_decay"],
            "eps": found["eps"],
            "rest1": 1 - found["beta1"],
            "beta2": found["beta2"],
            "rest2": 1 - found["beta2"],
            **self._steps(group, found, steps),
        }

    @abstractmethod
    def _steps(self, group: Group, found: Table, t: NDArray[Any]) -> Table:
        """Return the coefficients that only this rule has.

        Args:
            group: as for `table`.
            found: lr, beta1, beta2 and `more`, (n,) each, one value an update.
            t: (n,), the numbers of the updates, from 1.
        """

    def _moments(self, w: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Columns) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the weight decay and update both running means. Return g, m and v."""
        if self._uses["weight_decay"] and self._uses.get("decoupled_weight_decay"):
            g = -g if self._uses["maximize"] else g
            w.mul_(c["shrink"])
        else:
            g = self._prepared(w, g, c)
        mean = state["exp_avg"].lerp_(g, c["rest1"])
        square = state["exp_avg_sq"].mul_(c["beta2"]).addcmul_(g, g * c["rest2"])
        return g, mean, square


class AdamRule(_MomentsRule):
    """w -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps) (Kingma & Ba 2015).

    With `amsgrad`, v is replaced by its maximum so far (Reddi et al. 2018).
    """

    made_by = (Adam, AdamW)
    flags = ("maximize", "amsgrad", "decoupled_weight_decay")

    @property
    def state(self) -> tuple[str, ...]:
        return (*super().state, "max_exp_avg_sq") if self._uses["amsgrad"] else super().state

    def _steps(self, group: Group, found: Table, t: NDArray[Any]) -> Table:
        lr, beta1, beta2 = (found[name] for name in ("lr", "beta1", "beta2"))
        return {"size": lr / (1 - beta1**t), "correction": np.sqrt(1 - beta2**t)}

    def update(self, w: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Columns) -> None:
        _, mean, square = self._moments(w, g, state, c)
        if self._uses["amsgrad"]:
            largest = state["max_exp_avg_sq"]
            square = torch.maximum(largest, square, out=largest)
        scale = square.sqrt().div_(c["correction"]).add_(c["eps"])
        w.addcdiv_(mean * c["size"], scale, value=-1)


class NAdamRule(_MomentsRule):
    """Adam with Nesterov momentum (Dozat 2016).

    mu_t = b1 (1 - 0.96^(t * momentum_decay) / 2), M_t = mu_1 * ... * mu_t;
    w -= lr * (g (1 - mu_t) / (1 - M_t) + m mu_(t+1) / (1 - M_(t+1))) / (sqrt(v / (1 - b2^t)) + eps).
    """

    made_by = (NAdam,)
    flags = ("maximize", "decoupled_weight_decay")
    scalars: Mapping[str, float] = {"mu_product": 1.0}
    more = ("momentum_decay",)

    def _steps(self, group: Group, found: Table, t: NDArray[Any]) -> Table:
        lr, beta1, beta2, decay = (found[name] for name in ("lr", "beta1", "beta2", "momentum_decay"))
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
        """Compute the running products M_t, in the precision in which torch stores them."""
        dtype = np.float64 if torch.get_default_dtype() == torch.float64 else np.float32
        return np.multiply.accumulate(np.array([group["mu_product"], *mu], dtype))[1:].astype(np.float64)

    def update(self, w: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Columns) -> None:
        g, mean, square = self._moments(w, g, state, c)
        scale = square.div(c["correction2"]).sqrt_().add_(c["eps"])
        w.addcdiv_(g * c["of_gradient"], scale, value=-1)
        w.addcdiv_(mean * c["of_mean"], scale, value=-1)


class RAdamRule(_MomentsRule):
    """Adam with a rectified variance (Liu et al. 2020).

    rho = 2 / (1 - b2) - 1 and rho_t = rho - 2 t b2^t / (1 - b2^t) are the longest and the current length of the mean.
    r = sqrt((rho_t - 4)(rho_t - 2) rho / ((rho - 4)(rho - 2) rho_t));
    w -= lr m / (1 - b1^t) * (r sqrt(1 - b2^t) / (sqrt(v) + eps) if rho_t > 5 else 1).
    """

    made_by = (RAdam,)
    flags = ("maximize", "decoupled_weight_decay")

    def _steps(self, group: Group, found: Table, t: NDArray[Any]) -> Table:
        lr, beta1, beta2 = (found[name] for name in ("lr", "beta1", "beta2"))
        correction2 = 1 - beta2**t
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * t * beta2**t / correction2
        rectified = length > 5
        with np.errstate(all="ignore"):  # the ratio may be negative or infinite where it is not used
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


class RMSpropRule(_MomentumRule):
    """v = alpha v + (1 - alpha) g^2; w -= lr * g / (sqrt(v) + eps) (Tieleman & Hinton 2012).

    With `centered`, v is reduced by the square of g's running mean (Graves 2013). With momentum, the step
    s = g / (sqrt(v) + eps) goes into a buffer: b = momentum * b + s; w -= lr * b.
    """

    made_by = (RMSprop,)
    flags = ("maximize", "centered")

    @property
    def state(self) -> tuple[str, ...]:
        names = {"square_avg": True, "momentum_buffer": self._uses["momentum"], "grad_avg": self._uses["centered"]}
        return tuple(name for name, used in names.items() if used)

    def table(self, group: Group, scheduled: Table, steps: NDArray[Any]) -> Table:
        found = numbers(group, scheduled, steps, "lr", "weight_decay", "alpha", "eps", "momentum")
        found["rest"] = 1 - found["alpha"]
        if not self._changes["momentum"]:
            return {**found, "decay": found["momentum"]}
        uses = found["momentum"] > 0
        begun = group["begun"] if steps[0] > 1 else float(uses[0])
        if not begun and uses.any():
            step = int(steps[uses.argmax()])
            raise TrainingFailed("RMSprop has no momentum to begin with, and torch does not let it rise from 0", step)
        return {
            **found,
            "uses": uses * 1.0,
            "decay": np.where(uses, found["momentum"], 1.0),
            "begun": np.full(len(steps), begun),
        }

    def update(self, w: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Columns) -> None:
        g = self._prepared(w, g, c)
        square = state["square_avg"].mul_(c["alpha"]).addcmul_(g, g * c["rest"])
        if self._uses["centered"]:
            mean = state["grad_avg"].lerp_(g, c["rest"])
            scale = square.addcmul(mean, mean, value=-1).sqrt_().add_(c["eps"])
        else:
            scale = square.sqrt().add_(c["eps"])
        if self._changes["momentum"]:
            step = g / scale
            buffer = state["momentum_buffer"].mul_(c["decay"]).addcmul_(step, c["uses"])
            w.addcmul_(self._buffered(buffer, step, c), c["lr"], value=-1)
        elif self._uses["momentum"]:
            w.addcmul_(state["momentum_buffer"].mul_(c["decay"]).addcdiv_(g, scale), c["lr"], value=-1)
        else:
            w.addcdiv_(g * c["lr"], scale, value=-1)


class AdagradRule(Rule):
    """s += g^2; w -= lr / (1 + (t - 1) lr_decay) * g / (sqrt(s) + eps) (Duchi et al. 2011)."""

    made_by = (Adagrad,)

    @property
    def state(self) -> tuple[str, ...]:
        return ("sum",)

    def initial(self, name: str, group: Group) -> float:
        return group["initial_accumulator_value"]

    def table(self, group: Group, scheduled: Table, steps: NDArray[Any]) -> Table:
        found = numbers(group, scheduled, steps, "lr", "lr_decay", "weight_decay", "eps")
        return {**found, "lr": found["lr"] / (1 + (steps - 1) * found["lr_decay"])}

    def update(self, w: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Columns) -> None:
        g = self._prepared(w, g, c)
        scale = state["sum"].addcmul_(g, g).sqrt().add_(c["eps"])
        w.addcdiv_(g * c["lr"], scale, value=-1)


_RULES = (SGDRule, AdamRule, NAdamRule, RAdamRule, RMSpropRule, AdagradRule)


def rule_of(optimizer: Optimizer, changing: Collection[str] = ()) -> Rule | None:
    """Return the rule with this optimizer's update.

    Return None if there is none, if the optimizer has several parameter groups, or if it is differentiable.

    changing: the hyperparameters that the trial's schedule may set.
    """
    return rule_of_group(optimizer, 0, changing) if len(optimizer.param_groups) == 1 else None


def rule_of_group(optimizer: Optimizer, group: int, changing: Collection[str] = ()) -> Rule | None:
    """Return the rule with this optimizer's update of one parameter group, as `rule_of` does.

    Args:
        optimizer: the optimizer.
        group: the number of the parameter group, from 0.
        changing: the hyperparameters that the trial's schedule may set.
    """
    values = optimizer.param_groups[group]
    if values.get("differentiable"):
        return None
    for rule in _RULES:
        if type(optimizer) in rule.made_by:
            return rule(values, changing)
    return None
