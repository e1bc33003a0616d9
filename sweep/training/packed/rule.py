"""What a rule is: the contract of an optimizer's update for stacked weights.

Stacked tensors are (K, P): each row holds one trial's weights, flattened. Coefficients that depend only on numbers
(schedules, bias corrections) are computed for a complete epoch in float64, as torch does, and reach the update as
columns (K, 1).
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

Group = Mapping[str, Any]  # a parameter group of torch's optimizer
Table = dict[str, NDArray[Any]]  # coefficients of one trial by name: (n,) each, one value an update
Columns = Mapping[str, Tensor]  # coefficients of all trials in one update, by name: (K, 1) each


class Rule(ABC):
    """One kind of update. Trials whose rules are equal differ only in numbers, so they may share a pass.

    Attributes:
        made_by: the optimizer classes whose update this is.
        flags: switches in a parameter group that change which operations are done.
        optional: hyperparameters whose operations are left out when they are 0.
        scalars: numbers in the optimizer's state, by torch's names, with their initial values.
    """

    made_by: ClassVar[tuple[type[Optimizer], ...]]
    flags: ClassVar[tuple[str, ...]] = ("maximize",)
    optional: ClassVar[tuple[str, ...]] = ("weight_decay",)
    scalars: Mapping[str, float] = {}

    def __init__(self, group: Group, changing: Collection[str] = ()) -> None:
        """Choose the operations that these hyperparameters need.

        Args:
            group: the optimizer's parameter group.
            changing: hyperparameters that the schedule may set. An optional one among them is never left out, since it
                may change from or to 0.
        """
        self._changes = {name: name in changing for name in self.optional}
        self._uses = {name: bool(group.get(name)) for name in self.flags}
        self._uses |= {name: bool(group.get(name)) or changes for name, changes in self._changes.items()}
        self._signs = (*self._uses.values(), *self._changes.values())

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._signs == other._signs  # pyright: ignore

    def __hash__(self) -> int:
        return hash((type(self), self._signs))

    @property
    @abstractmethod
    def state(self) -> tuple[str, ...]:
        """Names of the stacked tensors that the rule keeps, as in torch's state."""

    def initial(self, name: str, group: Group) -> float:
        """Return the number that a tensor of the state is filled with at first."""
        return 0.0

    @abstractmethod
    def table(self, group: Group, scheduled: Table, steps: NDArray[Any]) -> Table:
        """Compute the coefficients of one trial's next updates.

        Args:
            group: the trial's parameter group, with the current `scalars`.
            scheduled: values that the scheduler sets in these updates, which replace the group's; `betas` is given as
                `beta1` and `beta2`.
            steps: (n,), the numbers of these updates, from 1.

        Raises:
            TrainingFailed: torch's optimizer cannot do such an update.
        """

    @abstractmethod
    def update(self, w: Tensor, g: Tensor, state: Mapping[str, Tensor], c: Columns) -> None:
        """Update the weights `w` and `state` in place.

        Args:
            w: weights, (K, P).
            g: their gradient, (K, P). It may be modified in place; do not use it afterwards.
            state: the tensors that `state` names, (K, P) each.
            c: the coefficients from `table`, (K, 1) each.
        """

    def loaded(self, of_one: Mapping[str, Any]) -> dict[str, float]:
        """Read the `scalars` from torch's state of one parameter."""
        return {name: float(of_one[name]) for name in self.scalars}

    def kept(self, scalars: Mapping[str, float]) -> tuple[dict[str, float], tuple[str, ...]]:
        """Return what torch's state would contain by now: the numbers, and the names of the tensors."""
        return dict(scalars), self.state

    def _prepared(self, w: Tensor, g: Tensor, c: Columns) -> Tensor:
        """Return the gradient as torch prepares it: negated to maximize, then with w * weight_decay added."""
        if self._uses["maximize"]:
            g = -g
        return g.addcmul(w, c["weight_decay"]) if self._uses["weight_decay"] else g


def numbers(group: Group, scheduled: Table, steps: NDArray[Any], *names: str) -> Table:
    """Return each number in each update, (n,): as the scheduler sets it, else the group's."""
    return {name: scheduled.get(name, np.full(len(steps), float(group[name]))) for name in names}
