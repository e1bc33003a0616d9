"""Build objects from config nodes, and check that they are what the trial needs.

Every function here raises ConfigError if the target cannot be loaded, does not accept its arguments, or fails.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sweep.config.callback_node import arguments_of as arguments_of_callback
from sweep.config.callback_node import key_of_callback
from sweep.config.optimizer_node import LR_SCALE, arguments_of, groups_of
from sweep.config.scheduler_node import interval_of
from sweep.config.targets import allowed_targets
from sweep.data import Datasets, Samples
from sweep.trial.binding import bind, located, named, parameters_of
from sweep.utils.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from sweep.training.groups import ParameterGroup

    SchedulerFactory = Callable[[Optimizer], LRScheduler]

_COUNTS_UPDATES = {"steps_per_epoch", "total_steps"}  # only schedulers that are stepped after each update have these


class Shapes(Protocol):
    """What a model is built for: `Samples`, `Datasets`, or what is stored of them with a trained model."""

    @property
    def in_shape(self) -> tuple[int, ...] | None:
        """Shape of one sample's input, if it is known."""
        ...

    @property
    def out_features(self) -> int | None:
        """The number of outputs, if it is known."""
        ...

    @property
    def tokens(self) -> bool:
        """Whether the inputs are token ids."""
        ...

    @property
    def n_tokens(self) -> int:
        """The number of different tokens."""
        ...


def samples(node: Mapping[str, Any], columns: Mapping[str, str | None] | None = None) -> Samples | Datasets:
    """Call the data target. Raise ConfigError, also if it returns anything but `Samples` or `Datasets`.

    Args:
        node: the config node.
        columns: those that the split needs, passed to a target that accepts them: `split_by` and `split_column`.
    """
    offered = {name: column for name, column in (columns or {}).items() if column is not None}
    for name in offered:
        if name not in named(located("data", node["_target_"], allowed_targets())):
            key = name.replace("_", ".")
            raise ConfigError(key, f"is for tables, and {node['_target_']} takes no {name}; leave it out")
    made = bind("data", node, offered)()
    if not isinstance(made, Samples | Datasets):
        problem = f"{node['_target_']} returned {type(made).__name__}, not sweep.Samples or sweep.Datasets"
        raise ConfigError("data._target_", problem)
    return made


def model(node: Mapping[str, Any], data: Shapes, out_features: int | None = None) -> "nn.Module":
    """Call the model target.

    The target gets what it accepts of `in_features` (the product of `in_shape`), `in_shape`, `n_tokens` (of token ids)
    and `out_features`, as far as they are known.

    Args:
        node: the config node.
        data: what the model is for.
        out_features: the number of outputs; by default, one for each target or class.

    Raises:
        ConfigError: the model cannot be built, or the target returns anything but a module.
    """
    offered: dict[str, Any] = {"out_features": data.out_features if out_features is None else out_features}
    if data.in_shape is not None:
        offered |= {"in_features": math.prod(data.in_shape), "in_shape": tuple(data.in_shape)}
    offered = {name: value for name, value in offered.items() if value is not None}
    if data.tokens:
        offered["n_tokens"] = data.n_tokens
    from torch import nn

    _refuse_other_kinds(node)
    make = bind("model", node, offered)
    made = make()
    if _is_lightning(type(made)):
        raise _lightning_error(node)
    if not isinstance(made, nn.Module):
        raise ConfigError("model._target_", f"{node['_target_']} returned {type(made).__name__}, not a torch.nn.Module")
    return made


def check_model_target(node: Mapping[str, Any]) -> None:
    """Raise ConfigError for a target of your own that is no model, as far as its class shows it. It is not called."""
    if str(node["_target_"]).startswith(("sweep.models.", "torch.nn.")):
        return
    _refuse_other_kinds(node)
    target = located("model", node["_target_"], allowed_targets())
    if isinstance(target, type) and _is_lightning(target):
        raise _lightning_error(node)


def _lightning_error(node: Mapping[str, Any]) -> ConfigError:
    return ConfigError(
        "model._target_",
        f"{node['_target_']} is a LightningModule, whose training_step and optimizers would be ignored; give the "
        "torch.nn.Module that it trains, its network, as model",
    )


def _refuse_other_kinds(node: Mapping[str, Any]) -> None:
    """Raise ConfigError for an optimizer or a data set as the model, before it is called with arguments of a model."""
    from torch.optim import Optimizer
    from torch.utils.data import Dataset

    target = located("model", node["_target_"], allowed_targets())
    if isinstance(target, type) and issubclass(target, Optimizer | Dataset):
        kind, group = ("an optimizer", "optimizer") if issubclass(target, Optimizer) else ("a data set", "data")
        raise ConfigError("model._target_", f"{node['_target_']} is {kind}, not a torch.nn.Module; see {group}=...")


def _is_lightning(kind: type) -> bool:
    """Return True for a LightningModule of any Lightning package, and for a class with the same two methods."""
    names = {(base.__module__.partition(".")[0], base.__name__) for base in kind.__mro__}
    if any(name == "LightningModule" and "lightning" in package for package, name in names):
        return True
    return all(callable(getattr(kind, name, None)) for name in ("training_step", "configure_optimizers"))


def optimizer(node: Mapping[str, Any], model: "nn.Module", shadow: bool = False) -> "Optimizer":
    """Make the optimizer of a model.

    The target gets the weights, divided as `optimizer.groups` and `optimizer.no_decay` say. A target with a parameter
    called `named_parameters` or `model` gets pairs of name and weight, or the model.

    Args:
        node: the config node.
        model: the model.
        shadow: True makes it of dummy weights of the same names and shapes, which take no memory.

    Raises:
        ConfigError: also if a pattern of groups matches no weight, if the target returns anything but an optimizer, or
            one whose `step` needs a closure, such as LBFGS.
    """
    from sweep.training.groups import grouped, stand_in, stand_ins

    weights = stand_ins(model) if shadow else dict(model.named_parameters())
    groups = _groups(node, model)
    names = named(located("optimizer", node["_target_"], allowed_targets()))
    offered: dict[str, Any] = {}
    if "named_parameters" in names:
        offered["named_parameters"] = [*weights.items()]
    if "model" in names:
        offered["model"] = stand_in(model, weights) if shadow else model
    arguments = arguments_of(node)
    for group in groups:
        if group.values:
            _check_group(arguments, group, list(grouped([group], weights)[0]["params"]), offered)
    given = grouped(groups, weights) if any(group.values for group in groups) else [*weights.values()]
    return _checked_optimizer("optimizer", arguments, given, offered)


def group_names(node: Mapping[str, Any], model: "nn.Module") -> list[tuple[str, ...]]:
    """Return the names of the weights in each of the groups that `optimizer` gives to the target, in its order.

    Args:
        node: the config node.
        model: the model.

    Raises:
        ConfigError: a pattern matches no weight.
    """
    groups = _groups(node, model)
    if any(group.values for group in groups):
        return [group.names for group in groups]
    return [tuple(name for name, _ in model.named_parameters())]


def _groups(node: Mapping[str, Any], model: "nn.Module") -> "list[ParameterGroup]":
    from sweep.training.groups import parameter_groups

    return parameter_groups(model, groups_of(node), node.get("no_decay") is not None)


def _checked_optimizer(
    key: str, node: Mapping[str, Any], weights: list[Any], offered: Mapping[str, Any]
) -> "Optimizer":
    """Call the target of an optimizer's node, and check what it returns.

    Args:
        key: the config key to name in an error about an argument.
        node: the target and its arguments.
        weights: a list of weights or of groups. The target gets it unless its first parameter is offered by name.
        offered: arguments that the target gets if it has parameters of these names.
    """
    from torch.optim import Optimizer

    first = parameters_of(located("optimizer", node["_target_"], allowed_targets()))[:1]
    given = [] if first and first[0].name in offered else [weights]
    made = bind(key, node, offered, positional=len(given))(*given)
    if not isinstance(made, Optimizer):
        raise ConfigError(
            "optimizer._target_", f"{node['_target_']} returned {type(made).__name__}, not a torch.optim.Optimizer"
        )
    if any(p.default is p.empty for p in parameters_of(type(made).step)[1:]):  # LBFGS wants a closure
        raise ConfigError(
            "optimizer._target_",
            f"{node['_target_']} evaluates the loss itself, several times a step; choose one that does not",
        )
    return made


def _check_group(
    node: Mapping[str, Any], group: "ParameterGroup", weights: list[Any], offered: Mapping[str, Any]
) -> None:
    """Raise ConfigError unless the optimizer takes the values of a group as arguments, and in groups.

    Torch's optimizers check their arguments, but not the values of groups. So one is made with these as arguments.
    """
    key = "optimizer.no_decay" if group.pattern is None else f"optimizer.groups.{group.pattern}"
    if offered:
        message = f"{node['_target_']} takes the model or the weights' names, and makes its own groups; leave it out"
        raise ConfigError(key, message)
    values = {name: value for name, value in group.values.items() if name != LR_SCALE}
    try:
        takes = _checked_optimizer("optimizer", node, weights, offered).defaults
    except ConfigError:
        return  # the optimizer needs groups, or cannot be built at all; the next call reports that
    for name in values:
        if name not in takes:
            at = key if group.pattern is None else f"{key}.{name}"
            names = ", ".join(sorted({*takes, LR_SCALE} - {"lr"}))
            raise ConfigError(at, f"{node['_target_']} has no {name} in its groups; they have: {names}")
    _checked_optimizer(key, {**node, **values}, weights, offered)


def scheduler(
    node: Mapping[str, Any],
    steps_per_epoch: int,
    epochs: int,
    direction: str = "minimize",
    total_steps: int | None = None,
) -> "SchedulerFactory":
    """Return a function that makes the scheduler from an optimizer.

    Args:
        node: the config node. Its key `interval` is not passed to the target.
        steps_per_epoch: passed to the target if it accepts it.
        epochs: passed to the target if it accepts it. A target without `steps_per_epoch` gets the product of both as
            `total_steps`.
        direction: minimize or maximize. It sets the `mode` of ReduceLROnPlateau, which follows the monitor.
        total_steps: the number of updates; None for the product. If it is less, a target that accepts `total_steps`
            gets it instead of the other two, and another target gets a fraction as `epochs`.

    Raises:
        ConfigError: the target does not accept its arguments. The returned function raises it too.
    """
    from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

    node = {key: value for key, value in node.items() if key != "interval"}
    total = steps_per_epoch * epochs if total_steps is None else total_steps
    offered: dict[str, Any] = {"steps_per_epoch": steps_per_epoch, "epochs": epochs}
    mode = direction[:3]
    target = located("scheduler", node["_target_"], allowed_targets())
    if total < steps_per_epoch * epochs:
        takes_total = "total_steps" in named(target)
        offered = {} if takes_total else {"steps_per_epoch": steps_per_epoch, "epochs": total / steps_per_epoch}
        offered["total_steps"] = total
    elif "steps_per_epoch" not in named(target):
        offered["total_steps"] = total
    if isinstance(target, type) and issubclass(target, ReduceLROnPlateau):
        offered["mode"] = mode
    make = bind("scheduler", node, offered, positional=1)

    def checked(optimizer: "Optimizer") -> "LRScheduler":
        try:
            made = make(optimizer)
        except ConfigError as error:
            is_one_cycle = isinstance(target, type) and issubclass(target, OneCycleLR)
            if not (is_one_cycle and isinstance(error.__cause__, ZeroDivisionError)):
                raise
            message = f"divides by 0 with {total} updates; change scheduler.pct_start or trainer.epochs"
            raise ConfigError("scheduler", message) from error
        if isinstance(made, ReduceLROnPlateau) and made.mode != mode:
            raise ConfigError(
                "scheduler.mode",
                f"is {made.mode}, but the metric that trainer.monitor names is to be {direction}d; make it {mode}",
            )
        if not all(hasattr(made, name) for name in ("step", "state_dict", "load_state_dict")):
            raise ConfigError(
                "scheduler._target_", f"{node['_target_']} returned {type(made).__name__}, which is not a scheduler"
            )
        return made

    return checked


def interval(node: Mapping[str, Any]) -> str | None:
    """Return whether the scheduler is stepped after each `step` or each `epoch`.

    The node's key `interval` decides. Without it, a target that accepts a number of updates is stepped after each step.
    None means that the kind of the scheduler will decide, once it is made.
    """
    target = located("scheduler", node["_target_"], allowed_targets())
    return interval_of(node) or ("step" if _COUNTS_UPDATES & named(target) else None)


def callbacks(nodes: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Call the targets in `trainer.callbacks`. Raise ConfigError, also for an object without any of the methods."""
    from sweep.training.callbacks import HOOKS

    made = []
    for i, node in enumerate(nodes):
        key = key_of_callback(i)
        made.append(bind(key, arguments_of_callback(node), offered={})())
        if not any(callable(getattr(made[-1], hook, None)) for hook in HOOKS):
            message = f"{node['_target_']} returned {type(made[-1]).__name__}, which has none of {', '.join(HOOKS)}"
            raise ConfigError(f"{key}._target_", message)
    return made
