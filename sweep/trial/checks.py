"""Checks of a config against its data, before torch is loaded: the metrics that trials have, the monitor, the sizes."""

from typing import Any

from sweep.config.callback_node import declared
from sweep.config.metrics import MOST_OUTPUTS, OF_NOISE, is_curve
from sweep.config.schema import Config
from sweep.config.task_node import AUTO_TASK, names_of, task_for
from sweep.data import Datasets
from sweep.trial.prepare import BATCH_SIZE, Data
from sweep.utils.errors import ConfigError


def check_data(data: Data, config: Config) -> None:
    """Raise ConfigError if the loss, the monitor or the batch size does not fit the data.

    This does not load torch, unless a callback's module does.
    """
    _check_loss_name(config, data)
    if data.divided is not None and data.samples.augment is None and config.loader.drop_last:
        raise ConfigError("loader.drop_last", "is for torch datasets, but the data are arrays; leave it out")
    check_monitor_of_data(data, config)
    declared(config.trainer.callbacks, taken=["train/loss", "lr", *OF_NOISE, *names_of(config.task)])
    check_batch_size(config, data.n_train)
    data.epoch_size(config)


def _check_loss_name(config: Config, data: Data) -> None:
    """Raise ConfigError if `trainer.loss` of an earlier version's config names another loss than the task's."""
    losses: dict[str | None, str] = {"regression": "mse", "classification": "cross_entropy"}
    loss, own = config.trainer.loss, losses.get(data.content.task)
    if loss != "auto" and (loss != own or config.task != AUTO_TASK):
        raise ConfigError("trainer.loss", f"{loss} does not fit; leave it out, and set task/loss=... instead")


def check_batch_size(config: Config, n_train: int) -> None:
    """Raise ConfigError for a batch size larger than the training split."""
    if config.trainer.batch_size > n_train:
        raise ConfigError(
            BATCH_SIZE, f"is {config.trainer.batch_size}, more than the {n_train} samples to train on; lower it"
        )


def check_monitor_of_data(data: Data, config: Config) -> None:
    """Raise ConfigError if trials on such data have no curve with the name of the monitor."""
    monitor = config.trainer.monitored
    known = ["train/loss", *filter(is_curve, metric_names(config, data))]
    if monitor not in known:
        known += filter(is_curve, declared(config.trainer.callbacks))
    if monitor not in known:
        message = f"trials on this data have no '{monitor}'; choose one of: {', '.join(known)}"
        raise ConfigError("trainer.monitor", message)


def metric_names(config: Config, data: Data) -> list[str]:
    """Return the names of the metrics that trials on such data have on the splits `val` and `test`."""
    parts = [part for part in ("val", "test") if part == "val" or has_test(data)]
    names = [f"{part}/{name}" for part in parts for name in ("loss", *_metric_nodes(config, data))]
    undefined = undefined_metrics(config, data)
    return [name for name in names if name not in undefined]


def has_test(data: Data) -> bool:
    """Return whether there is a test split. Torch datasets may lack it."""
    return not isinstance(data.content, Datasets) or data.content.test is not None


def undefined_metrics(config: Config, data: Data) -> list[str]:
    """Return the names of the metrics that have no value: r2 on a split where all targets are equal.

    r2 divides by the variance of the targets. Of torch datasets, the targets are not known.
    """
    if data.divided is None:
        return []
    nodes = _metric_nodes(config, data)
    named = [name for name, node in nodes.items() if node["_target_"] == "sweep.tasks.metrics.r2"]
    parts = {"val": data.splits.val.y, "test": data.splits.test.y}
    constant = [part for part, y in parts.items() if named and (y.max(axis=0) == y.min(axis=0)).all()]
    return [f"{part}/{name}" for part in constant for name in named]


def _metric_nodes(config: Config, data: Data) -> dict[str, Any]:
    """Return the nodes of the metrics of the task that trials on such data have, by name."""
    return task_for(data.content.task, config.task).get("metrics") or {}


def warnings_of_undefined(config: Config, data: Data) -> list[str]:
    """Return a line about the metrics that trials on such data lack, if there are any."""
    if not (names := undefined_metrics(config, data)):
        return []
    why = "the targets do not vary there"
    return [f"warning: {' and '.join(names)}: left out, since {why}; raise split.val or split.test"]


def warnings_of_size(config: Config, data: Data) -> list[str]:
    """Return a line about the metrics that need more outputs at once than sweep would keep, if there are any.

    This loads torch only if a split is large. Raises ConfigError if the task cannot be built then.
    """
    if data.divided is None:
        return []
    splits = {"val": data.splits.val, "test": data.splits.test}
    n_each = max(1, len(data.content.classes), len(config.task.get("quantiles") or ()))
    if max(split.y.size for split in splits.values()) * n_each <= MOST_OUTPUTS:
        return []
    import torch

    from sweep.tasks import TensorTask
    from sweep.training.tensors import n_outputs
    from sweep.trial.build_task import build_task

    task = build_task(config.task, data.content, data.divided, torch.device("cpu"))
    if not isinstance(task, TensorTask) or not task.whole:
        return []
    sizes = {part: n_outputs(task, torch.from_numpy(split.y)) for part, split in splits.items()}
    part = max(sizes, key=sizes.__getitem__)
    if sizes[part] <= MOST_OUTPUTS:
        return []
    names, size = ", ".join(f"task.metrics.{name}" for name in task.whole), sizes[part] * 4 / 2**30
    why = f"takes the outputs of the whole {part} split at once, {size:.1f} GiB; a class with update, compute and"
    return [f"warning: {names}: {why} reset takes them batch by batch (docs/tasks.md)"]
