"""Build a task from its config node: the loss, the metrics, then the task with both."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from sweep.config.targets import allowed_targets
from sweep.config.task_node import task_for
from sweep.data import Datasets, Samples
from sweep.data.split import Splits
from sweep.trial.binding import bind, located
from sweep.utils.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sweep.tasks import Task, TensorTask

_BALANCED = "balanced"
_MEMBERS = ("loss", "outputs", "metrics")


def build_task(
    node: Mapping[str, Any], samples: Samples | Datasets, splits: Splits | None, device: "torch.device"
) -> "TensorTask | Task":
    """Build the loss, the metrics and the task.

    Each gets what it takes of `n_classes`, `n_labels`, `y_mean` and `y_std`, and metrics also `task`, `num_classes` and
    `num_labels` as those of torchmetrics take them. The task gets `loss` and `metrics`.

    Args:
        node: the config's node.
        samples: the data.
        splits: their division, for the scale of the targets and the weights of classes; None for torch datasets, whose
            targets are in their own units.
        device: of the training.

    Raises:
        ConfigError: something cannot be built, or the task does not fit the data.
    """
    import torch

    node = task_for(samples.task, node)
    kind = located("task", node["_target_"], allowed_targets())
    _check_kind(node, kind, samples)
    offered: dict[str, Any] = {"n_classes": len(samples.classes), "n_labels": len(samples.classes)}
    if splits is not None:
        offered |= {name: torch.from_numpy(getattr(splits, name)).to(device) for name in ("y_mean", "y_std")}
    elif samples.out_features is not None:
        ones = torch.ones(samples.out_features, device=device)
        offered |= {"y_mean": torch.zeros_like(ones), "y_std": ones}
    loss = _build_loss(node.get("loss"), samples, splits, offered)
    if splits is not None and getattr(loss, "log_input", False) and splits.y_mean.any():
        message = "takes logarithms of the targets' scale, so these must not be normalised; set split.normalize=false"
        raise ConfigError("task.loss", message)
    if isinstance(loss, torch.nn.CrossEntropyLoss) and samples.task == "regression" and samples.out_features == 1:
        message = "is a cross entropy, which is 0 for one number; choose task/loss=mse, or data with classes"
        raise ConfigError("task.loss", message)
    of_torchmetrics = {"num_classes": offered["n_classes"], "num_labels": offered["n_labels"]}
    if (task_of_metrics := getattr(kind, "torchmetrics_task", None)) is not None:
        of_torchmetrics["task"] = task_of_metrics
    metrics = {
        name: _build_metric(f"task.metrics.{name}", metric, offered | of_torchmetrics)
        for name, metric in (node.get("metrics") or {}).items()
    }
    own = {key: value for key, value in node.items() if key not in ("loss", "metrics")}
    task = bind("task", own, offered | {"loss": loss, "metrics": metrics})()
    if missing := [name for name in _MEMBERS if not hasattr(task, name)]:
        raise ConfigError("task._target_", f"{node['_target_']} has no {' or '.join(missing)}; see sweep.tasks.Task")
    return task


def _check_kind(node: Mapping[str, Any], kind: Any, samples: Samples | Datasets) -> None:
    """Raise ConfigError if the task cannot have targets of the kind that the data have."""
    kinds = getattr(kind, "kinds", None)
    if kinds is not None and samples.task not in kinds:
        name, own = node["_target_"].rpartition(".")[2], samples.task or "no task; give one to Datasets"
        raise ConfigError("task", f"{name} needs data for {' or '.join(kinds)}, but these are for {own}")
    if getattr(kind, "torchmetrics_task", None) == "binary" and len(samples.classes) != 2:
        raise ConfigError("task", f"binary needs two classes, but the data have {len(samples.classes)}")


def _build_loss(node: Any, samples: Samples | Datasets, splits: Splits | None, offered: Mapping[str, Any]) -> Any:
    """Build the loss from its node. Return None if there is none, which a task of your own may not need."""
    if not node:
        return None
    own, weights = {}, {}
    for name, value in _checked("task.loss", node).items():
        is_weight = name in ("weight", "pos_weight") and isinstance(value, str | list)
        (weights if is_weight else own)[name] = value
    given = {name: _weights(name, value, samples, splits) for name, value in weights.items()}
    return _callable("task.loss", own, {**offered, **given})


def _weights(name: str, value: str | list[Any], samples: Samples | Datasets, splits: Splits | None) -> "Tensor":
    """Return the weights of the classes: those given, or those that balance the classes of the training split."""
    import torch

    from sweep.tasks.losses import balanced_pos_weights, balanced_weights

    key, n = f"task.loss.{name}", len(samples.classes)
    if value != _BALANCED:
        if not isinstance(value, list) or not all(isinstance(v, int | float) and v >= 0 for v in value):
            raise ConfigError(key, f"must be {_BALANCED}, null or a list of numbers >= 0, got {value}")
        wanted = 1 if name == "pos_weight" and samples.task == "classification" else n
        if len(value) != wanted:
            raise ConfigError(key, f"has {len(value)} numbers, but the task needs {wanted}")
        return torch.tensor(value, dtype=torch.float32)
    if samples.task == "regression":
        raise ConfigError(key, f"{_BALANCED} needs classes, but the data are for regression")
    if splits is None:
        raise ConfigError(key, f"{_BALANCED} counts the targets of arrays; for torch datasets, give a list of numbers")
    y = torch.from_numpy(splits.train.y)
    if name == "pos_weight":
        positives = y.reshape(len(y), -1).sum(dim=0)
        return balanced_pos_weights(positives, len(y))
    return balanced_weights(torch.bincount(y.flatten(), minlength=n))


def _build_metric(key: str, node: Any, offered: Mapping[str, Any]) -> Any:
    own = {name: value for name, value in _checked(key, node).items() if name != "goal"}
    return _callable(key, own, offered)


def _checked(key: str, node: Any) -> dict[str, Any]:
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise ConfigError(key, f"needs a _target_, got {node!r}")
    return node


def _callable(key: str, node: dict[str, Any], offered: Mapping[str, Any]) -> Callable[..., Any]:
    """Return an instance of the node's class, or its function with the node's arguments set."""
    target = located(key, node["_target_"], allowed_targets())
    if not inspect.isfunction(target):
        return bind(key, node, offered)()
    bind(key, node, offered, positional=2)  # checks the arguments
    return partial(target, **{name: value for name, value in node.items() if name != "_target_"})
