"""The rules of an optimizer whose parameter groups have values of their own: one rule for each group."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from sweep.training.packed.rule import Rule
from sweep.training.packed.rules import rule_of_group


@dataclass(frozen=True)
class GroupedRules:
    """How the weights of a trial are updated. Trials for which this is equal may share a pass.

    Attributes:
        rules: of each parameter group.
        names: of each group's weights, in the order of the optimizer. Weights that are not trained are among them.
    """

    rules: tuple[Rule, ...]
    names: tuple[tuple[str, ...], ...]

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the stacked tensors that any of the rules keeps."""
        return tuple(dict.fromkeys(name for rule in self.rules for name in rule.state))

    @property
    def scalars(self) -> list[dict[str, float]]:
        """The numbers in the optimizer's state, with their initial values, for each group."""
        return [dict(rule.scalars) for rule in self.rules]

    def loaded(self, kept: Mapping[int, Mapping[str, Any]]) -> list[dict[str, float]]:
        """Read the `scalars` from torch's state of the weights, by their number: they are numbered as in `names`."""
        found, first = self.scalars, 0
        for group, (rule, names) in enumerate(zip(self.rules, self.names, strict=True)):
            of_one = next((kept[place] for place in range(first, first + len(names)) if place in kept), None)
            if of_one is not None:
                found[group] = rule.loaded(of_one)
            first += len(names)
        return found


def grouped_rules(
    optimizer: Optimizer, names: Sequence[Sequence[str]], changing: Collection[str] = ()
) -> GroupedRules | None:
    """Return the rules of this optimizer's update. Return None if there is none, or if the optimizer is differentiable.

    Args:
        optimizer: the optimizer, or its shadow.
        names: of the weights in each of its parameter groups, in its order.
        changing: the hyperparameters that the trial's schedule may set.
    """
    rules = [rule_of_group(optimizer, group, changing) for group in range(len(optimizer.param_groups))]
    found = [rule for rule in rules if rule is not None]
    return GroupedRules(tuple(found), tuple(map(tuple, names))) if len(found) == len(rules) else None
