"""Which weights an optimizer updates with which values, and stand-ins for the weights of a model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from sweep.training.torch_internals import shallow_copy
from sweep.utils.errors import ConfigError, require

_MOST_NAMED = 6  # weights in a message


@dataclass(frozen=True)
class ParameterGroup:
    """Weights that share an optimizer's values.

    Attributes:
        pattern: the pattern of their names; None for weights that no pattern matches.
        names: their names in the model.
        values: what they have instead of the optimizer's own values, by argument; perhaps with `lr_scale`.
    """

    pattern: str | None
    names: tuple[str, ...]
    values: Mapping[str, Any]


def parameter_groups(
    model: nn.Module, patterns: Mapping[str, Mapping[str, Any]], spares_norms_and_biases: bool
) -> list[ParameterGroup]:
    """Divide a model's weights into groups.

    A weight belongs to the first pattern that matches its name. The groups are in the order of the patterns; weights
    without a pattern come first.

    Args:
        model: the model. Weights that are not trained belong to groups too.
        patterns: the values of each group, by a pattern as of a shell: `*` matches any text, also with dots.
        spares_norms_and_biases: True gives biases and the weights of normalisation layers a weight decay of 0, unless
            their pattern sets it.

    Raises:
        ConfigError: a pattern matches no weight that is left for it.
    """
    found: dict[tuple[str | None, bool], list[str]] = {(None, False): [], (None, True): []}
    found |= {(pattern, spared): [] for pattern in patterns for spared in (False, True)}
    names = [name for name, _ in model.named_parameters()]
    spared_names = _norms_and_biases(model) if spares_norms_and_biases else set()
    for name in names:
        pattern = next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)
        spared = name in spared_names and "weight_decay" not in patterns.get(pattern or "", {})
        found[pattern, spared].append(name)
    for pattern in patterns:
        if not found[pattern, False] and not found[pattern, True]:
            taken = any(fnmatchcase(name, pattern) for name in names)
            why = "matches only weights of patterns before it; move it up" if taken else _no_match(names)
            raise ConfigError("optimizer.groups", f"'{pattern}' {why}")
    return [
        ParameterGroup(
            pattern, tuple(own), {**patterns.get(pattern or "", {}), **({"weight_decay": 0.0} if spared else {})}
        )
        for (pattern, spared), own in found.items()
        if own
    ]


def grouped(groups: Iterable[ParameterGroup], weights: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """Return the groups as an optimizer takes them. weights: the model's weights or others, by name."""
    return [{"params": [weights[name] for name in group.names], **group.values} for group in groups]


def freeze(model: nn.Module, patterns: Iterable[str]) -> None:
    """Exclude the weights whose names match a pattern from training.

    Raises:
        ConfigError: a pattern matches no weight, or no weight is left to train.
    """
    named = dict(model.named_parameters())
    for pattern in patterns:
        matched = [weight for name, weight in named.items() if fnmatchcase(name, pattern)]
        require(bool(matched), "optimizer.freeze", f"'{pattern}' {_no_match(list(named))}")
        for weight in matched:
            weight.requires_grad_(False)
    left = any(weight.requires_grad for weight in named.values())
    require(left or not patterns, "optimizer.freeze", "leaves no weight to train; freeze fewer")


def stand_ins(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return a dummy for each of the model's weights, by name: of the same shape, but without memory of its own."""
    dummy = torch.zeros(())
    return {
        name: nn.Parameter(dummy.expand(weight.shape), requires_grad=weight.requires_grad)
        for name, weight in model.named_parameters()
    }


def stand_in(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> nn.Module:
    """Return a copy of the model's structure that has other weights. Everything else is shared with the model.

    Args:
        model: the model.
        weights: the weights of the copy, by name.
    """
    by_id = {id(weight): weights[name] for name, weight in model.named_parameters()}
    modules: dict[int, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        if id(module) not in modules:
            modules[id(module)] = shallow_copy(module, lambda weight: by_id[id(weight)], copied)
        return modules[id(module)]

    return copied(model)


def _norms_and_biases(model: nn.Module) -> set[str]:
    """Return the names of biases, and of vectors in layers whose class is called a norm, such as LayerNorm."""
    found = set()
    for prefix, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, weight in module.named_parameters(prefix, recurse=False):
            if name.endswith("bias") or (is_norm and weight.ndim <= 1):
                found.add(name)
    return found


def _no_match(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED]) + (f", ... ({len(names)} in all)" if len(names) > _MOST_NAMED else "")
    return f"matches no weight; the model has {shown}"
