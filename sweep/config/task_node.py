"""The node `task` of a config: which metrics a task has, and whether lower or higher is better.

Trials also have the metrics that callbacks declare (`sweep.config.callback_node`).
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sweep.config.callback_node import declared
from sweep.config.metrics import DIRECTIONS, KINDS, checked_goal, is_curve
from sweep.config.options import CONF_DIR
from sweep.config.targets import check_targets
from sweep.utils.errors import ConfigError, require

AUTO = "sweep.tasks.auto"  # the target that stands for the task that the data state
AUTO_TASK = {"_target_": AUTO, "loss": {}, "metrics": {}}  # conf/task/auto.yaml
_SPLITS = ("val", "test")  # on which a task's metrics are measured
_TABLE = "sweep.data.table.table"
_KIND_OF_TABLE = {  # by task; the tasks' classes, which have these as `kinds`, load torch
    "sweep.tasks.Regression": "regression",
    "sweep.tasks.Quantile": "regression",
    "sweep.tasks.Classification": "classification",
    "sweep.tasks.Binary": "classification",
    "sweep.tasks.Multilabel": "multilabel",
}


def task_for(kind: str | None, task: Mapping[str, Any]) -> dict[str, Any]:
    """Return the node of the task to train for.

    Args:
        kind: of the data, one of KINDS; None if they name none, which is enough unless the task is `auto`.
        task: the config's node. If it is `auto`, the result is the option of that kind, with the node's loss and
            metrics if it has any. A loss without a target changes arguments of the option's loss.
    """
    if task["_target_"] != AUTO:
        return dict(task)
    if kind is None:
        raise ConfigError("task", "is auto, but Datasets names no task; give it one, or choose a task of your own")
    option = _option(kind)
    loss, metrics = task.get("loss") or {}, task.get("metrics") or {}
    own = {} if "_target_" in loss else option["loss"]
    return option | {"loss": own | loss, "metrics": option["metrics"] | metrics}


def data_node(data: Mapping[str, Any], task: Mapping[str, Any]) -> dict[str, Any]:
    """Return the node of the data, with the kind of targets that the task needs, for a table.

    A task of sweep decides how a table's targets are read. With `auto` and a task of your own, `data.task` does.
    """
    kind = _KIND_OF_TABLE.get(task["_target_"])
    return {**data, "task": kind} if kind is not None and data["_target_"] == _TABLE else {**data}


def metrics_of(task: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the nodes of the metrics that trials of the task may have, by name. `auto` has those of every kind."""
    kinds = KINDS if task["_target_"] == AUTO else KINDS[:1]
    return {name: node for kind in kinds for name, node in (task_for(kind, task).get("metrics") or {}).items()}


def direction_of(metric: str, task: Mapping[str, Any], callbacks: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return "minimize" or "maximize".

    Args:
        metric: a recorded name, such as val/accuracy.
        task: the config's node.
        callbacks: the nodes of `trainer.callbacks`. They are loaded only if the task does not have the metric.

    Raises:
        ConfigError: the task's metric of that name, or a callback, does not say which.
    """
    split, _, name = metric.partition("/")
    if name == "loss" and split in ("train", *_SPLITS):  # of most trials; the options of the metrics need not be read
        return "minimize"
    node = metrics_of(task).get(name) if split in _SPLITS else None
    return declared(callbacks).get(metric, "minimize") if node is None else _goal(name, node)


def names_of(task: Mapping[str, Any]) -> list[str]:
    """Return the names under which the metrics of the task may be recorded, such as val/loss and test/accuracy."""
    return [f"{split}/{name}" for split in _SPLITS for name in ("loss", *metrics_of(task))]


def check_monitor(monitor: str, task: Mapping[str, Any], callbacks: Sequence[Mapping[str, Any]]) -> None:
    """Raise ConfigError for a monitor that is no curve by epoch of the task or of a callback."""
    known = ["train/loss", *filter(is_curve, names_of(task))]
    if monitor not in known and monitor not in (own := [*filter(is_curve, declared(callbacks))]):
        message = f"'{monitor}' is unknown; choose one of {', '.join([*known, *own])}"
        more = "; a callback declares its own: metrics = {name: goal} (docs/recipe.md)" if callbacks else ""
        raise ConfigError("trainer.monitor", message + more)


@functools.cache
def _option(kind: str) -> dict[str, Any]:
    """Return the node that conf/task/KIND.yaml composes to. Do not modify it."""
    folder = CONF_DIR / "task"
    node = _loaded(folder / f"{kind}.yaml")
    loss, metrics = ({**entry} for entry in node.pop("defaults"))
    merged = {}
    for name in metrics["metrics"]:
        merged |= _loaded(folder / "metrics" / f"{name}.yaml")
    return {"loss": _loaded(folder / "loss" / f"{loss['loss']}.yaml"), "metrics": merged, **node}


def _loaded(path: Path) -> dict[str, Any]:
    node = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


@functools.cache
def _goal_of_target(target: str) -> str | None:
    """Return the goal that a metric's class states, as those of torchmetrics do; None if it states none."""
    from hydra.utils import get_object

    higher = getattr(get_object(target), "higher_is_better", None)
    return None if higher is None else DIRECTIONS[bool(higher)]


def _goal(name: str, node: Any) -> str:
    key = f"task.metrics.{name}"
    require(isinstance(node, Mapping) and isinstance(node.get("_target_"), str), key, "needs a _target_")
    if (goal := node.get("goal")) is None:
        check_targets(key, dict(node))
        try:
            goal = _goal_of_target(node["_target_"])
        except Exception as error:  # importing a module may raise anything
            raise ConfigError(f"{key}._target_", f"cannot load '{node['_target_']}': {error}") from error
    return checked_goal(f"{key}.goal", goal, f"+{key}.goal=minimize or +{key}.goal=maximize")
