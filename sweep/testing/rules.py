"""The check of a rule for packed trials."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

_EPOCHS = (5, 4, 3)  # updates in each epoch; a pack computes a rule's coefficients for one epoch at a time


def check_packed_rule(
    make: Callable[..., Any],
    arguments: Sequence[Mapping[str, Any]],
    schedules: Sequence[Sequence[Mapping[str, Any]]] | None = None,
    *,
    n_weights: int = 5,
    seed: int = 0,
) -> None:
    """Check that a rule for packed trials gives the same updates as the optimizer gives each trial by itself.

    Weights and state are compared after each of 12 updates in 3 epochs, in float64, with a relative and an absolute
    tolerance of 1e-12. About half of the gradients are 0.

    Args:
        make: the class of the optimizer, for which a rule exists.
        arguments: the arguments of each trial's optimizer, without the weights. They may differ only in numbers.
        schedules: what the scheduler sets: for each trial, a mapping of hyperparameters for each of the 12 updates. By
            default a random `lr`, log-uniform from 1e-4 to 10^-0.5.
        n_weights: the number of weights of a trial.
        seed: of the weights and the gradients.

    Raises:
        AssertionError: there is no rule, the trials cannot share a pass, an update differs, or a checkpoint would lack
            some of the optimizer's state.
    """
    import torch
    from torch import nn
    from torch.testing import assert_close

    from sweep.training.packed.rules import rule_of

    rng, n_updates = np.random.default_rng(seed), sum(_EPOCHS)
    if schedules is None:
        schedules = [[{"lr": float(lr)} for lr in 10 ** rng.uniform(-4, -0.5, n_updates)] for _ in arguments]
        changing: set[str] = set()
    else:
        changing = {name for rows in schedules for name in rows[0]}
    stacked = torch.from_numpy(rng.normal(size=(len(arguments), n_weights)))
    weights = [nn.Parameter(row.clone()) for row in stacked]
    optimizers = [make([weight], **own) for weight, own in zip(weights, arguments, strict=True)]
    rules = [rule_of(optimizer, changing - {"lr"}) for optimizer in optimizers]
    rule = rules[0]
    assert rule is not None, f"there is no rule for {make.__name__} with such arguments"
    assert all(other == rule for other in rules), "the trials differ in more than numbers, and may not share a pass"
    groups = [{**optimizer.param_groups[0], **rule.scalars} for optimizer in optimizers]
    state = {
        name: torch.tensor([[rule.initial(name, group)] * n_weights for group in groups], dtype=torch.float64)
        for name in rule.state
    }
    step = 0
    for length in _EPOCHS:
        steps = np.arange(step + 1, step + length + 1, dtype=np.float64)
        tables = [
            rule.table(group, _table(rows[step : step + length]), steps)
            for group, rows in zip(groups, schedules, strict=True)
        ]
        for group, table in zip(groups, tables, strict=True):
            group.update({name: float(table[name][-1]) for name in rule.scalars})
        for i in range(length):
            gradients = torch.from_numpy(rng.normal(size=stacked.shape) * rng.integers(0, 2, size=stacked.shape))
            columns = {name: torch.tensor([[table[name][i]] for table in tables]) for name in tables[0]}
            rule.update(stacked, gradients.clone(), state, columns)
            for k, (weight, optimizer) in enumerate(zip(weights, optimizers, strict=True)):
                optimizer.param_groups[0].update(schedules[k][step])
                weight.grad = gradients[k].clone()
                optimizer.step()
                message = f"trial {k}, update {step + 1}: {{}}".format
                assert_close(stacked[k], weight.detach(), rtol=1e-12, atol=1e-12, msg=message)
                for part in rule.state:
                    own = optimizer.state[weight].get(part)  # SGD has no buffer before the first use of momentum
                    own = torch.zeros_like(weight) if own is None else own
                    assert_close(state[part][k], own.detach(), rtol=1e-12, atol=1e-12, msg=message)
            step += 1
    for group, weight, optimizer in zip(groups, weights, optimizers, strict=True):
        own = optimizer.state[weight]
        scalars = {name: group[name] for name in rule.scalars}
        loaded = rule.loaded(own)
        assert all(math.isclose(scalars[name], loaded[name], rel_tol=1e-12) for name in scalars), "its scalars differ"
        kept = {name for name, value in own.items() if value is not None} - {"step"}
        own_scalars, names = rule.kept(scalars)
        assert kept == {*own_scalars, *names}, "a checkpoint needs all of torch's state"


def _table(scheduled: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Convert what the scheduler sets to the form that `Rule.table` takes: an array of shape (n,) for each number."""
    table = {name: np.array([row[name] for row in scheduled]) for name in scheduled[0] if name != "betas"}
    if "betas" in scheduled[0]:
        table["beta1"], table["beta2"] = np.array([row["betas"] for row in scheduled]).T
    return table
