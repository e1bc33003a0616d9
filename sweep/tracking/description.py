"""The name, params and data set of a run, as a tracking store shows them."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.config.function_node import shown_call
from sweep.config.overrides import sets
from sweep.config.schema import COMPONENTS, Config, own_defaults
from sweep.config.task_node import AUTO
from sweep.data import Datasets, Samples
from sweep.data.split import Splits

if TYPE_CHECKING:
    from sweep.training.data import Batch

_SPLIT_PARAMS = ("kind", "by", "column", "seed", "val", "test", "normalize", "max_samples", "folds")
_BLOCK_ROWS = 65536
_TRAINER_PARAMS = (
    "epochs",
    "batch_size",
    "loss",
    "precision",
    "clip_norm",
    "monitor",
    "patience",
    "min_delta",
    "compile",
    "seed",
)
_RECIPE_PARAMS = ("clip_value", "accumulate", "max_steps", "val_interval", "ema", "callbacks")  # recorded if set


def group_choices(config: Config) -> dict[str, str]:
    """Return the option chosen in each config group.

    If the command line changes the option's target, or if the config was not composed by Hydra, return the last part of
    the target in lower case instead.
    """
    nodes = {key: node for key in COMPONENTS if _has_target(node := getattr(config, key))}
    own = {key: str(node["_target_"]).rpartition(".")[2].lower() for key, node in nodes.items()}
    retargeted = [key for key in COMPONENTS if any(sets(o, f"{key}._target_") for o in config.overrides or ())]
    return own | {key: option for key, option in config.choices.items() if key not in retargeted}


def run_name(config: Config) -> str:
    """Return a run's name, such as adam-cyclic-mlp-noisy_sine-s0, or gan.train-s0 of a training function."""
    choices = group_choices(config)
    if config.is_application:
        return Path(str(config.trainer.call)).stem
    function = [shown_call(config.trainer.call)] if config.is_function else []
    parts = [choices[key] for key in ("optimizer", "scheduler", "model", "data") if key in choices]
    return "-".join([*function, *parts, f"s{config.seed}"])


def hyperparameters(config: Config) -> dict[str, Any]:
    """Return the settings in which trials may differ, by config key, without those that are None.

    Keys of the optimizer that its target does not take are included only if they are set. A training function's own
    keys are included, and those groups of sweep's loop that were chosen. For another Hydra application, the whole
    config is included.
    """
    if config.hydra_application is not None:
        leaves = (leaf for key, node in config.hydra_application.items() for leaf in _leaves(str(key), node))
        return {key: value for key, value in leaves if value is not None}
    params: dict[str, Any] = {"seed": config.seed}
    if config.has_split:
        params |= {f"split.{name}": getattr(config.split, name) for name in _SPLIT_PARAMS}
    if config.split.folds is not None:
        params["split.fold"] = config.split.fold
    params |= _of_trainer(config)
    recipe = {f"trainer.{name}": getattr(config.trainer, name) for name in _RECIPE_PARAMS}
    recipe |= {f"loader.{name}": value for name, value in vars(config.loader).items()}
    params |= {name: value for name, value in recipe.items() if _is_set(name, value)}
    for key in COMPONENTS:
        params |= {name: value for name, value in _leaves(key, getattr(config, key)) if _is_set(name, value)}
    for key, node in config.own.items():
        params |= dict(_leaves(key, node))
    if config.task["_target_"] != AUTO:
        params["task"] = config.task["_target_"]
    params |= dict(_leaves("task.loss", config.task.get("loss")))
    if (
        not config.is_function and "max_lr" in config.scheduler
    ):  # the schedule sets the learning rate; the optimizer's own value is not used
        params.pop("optimizer.lr", None)
    return {key: value for key, value in params.items() if value is not None}


def dataset(samples: Samples, inputs: Samples, splits: Splits) -> dict[str, Any]:
    """Return the name, content digest, source and profile of a data set, in the form of an MLflow data set.

    Args:
        samples: as they were loaded.
        inputs: the same with a model's inputs.
        splits: of the inputs.
    """
    return {
        "name": samples.name,
        "digest": _digest(samples),
        "source": {"uri": samples.source or "generated"},
        "profile": {
            "task": samples.task,
            "n_samples": len(samples.x),
            "n_train": len(splits.train.x),
            "n_val": len(splits.val.x),
            "n_test": len(splits.test.x),
            "in_shape": list(inputs.in_shape),
            "out_features": samples.out_features,
        },
    }


def dataset_of_datasets(datasets: Datasets, batch: "Batch") -> dict[str, Any]:
    """Describe torch datasets, in the form of an MLflow data set.

    The digest shows another number of samples, other classes or other batches. It does not show other values: reading
    all samples could take hours.

    Args:
        datasets: the three.
        batch: of training samples.
    """
    from sweep.training.data import describe

    sizes = {f"n_{part}": datasets.size(part) for part in ("train", "val", "test")}
    known = [size for size in sizes.values() if size is not None]
    profile = {
        "task": datasets.task,
        "n_samples": sum(known) if len(known) == len(sizes) else None,
        **sizes,
        "in_shape": None if datasets.in_shape is None else list(datasets.in_shape),
        "out_features": datasets.out_features,
    }
    described = [datasets.name, profile, datasets.classes, describe(batch)]
    return {
        "name": datasets.name,
        "digest": hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16],
        "source": {"uri": datasets.source or "torch datasets"},
        "profile": profile,
    }


def _digest(samples: Samples) -> str:
    """Return a digest of inputs, targets and weights, taken in blocks of rows to save memory."""
    digest = hashlib.sha256()
    for values in (samples.x, samples.y):
        for start in range(0, len(values), _BLOCK_ROWS):
            digest.update(values[start : start + _BLOCK_ROWS].tobytes())
    if samples.weights is not None:
        digest.update(samples.weights.tobytes())
    if samples.encoding is not None:  # x holds categories as indices of their names
        digest.update(repr([column.values for column in samples.encoding.columns]).encode())
    return digest.hexdigest()[:16]


def _of_trainer(config: Config) -> dict[str, Any]:
    """Return the trainer's settings. Of those that a training function may ignore, only the ones that are set."""
    params = {f"trainer.{name}": getattr(config.trainer, name) for name in _TRAINER_PARAMS}
    if not config.is_function:
        return params
    known = {"trainer.call": shown_call(config.trainer.call), "trainer.epochs": config.trainer.epochs}
    return {**known, **{name: value for name, value in params.items() if name not in known and _is_set(name, value)}}


def _has_target(node: Any) -> bool:
    return isinstance(node, dict) and "_target_" in node


def _is_set(key: str, value: Any) -> bool:
    """Return False if the key is one of sweep's own and has its default."""
    return key not in own_defaults() or own_defaults()[key] != value


def _leaves(key: str, node: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        yield key, node
        return
    if not all(str(name).isidentifier() for name in node):  # MLflow takes no `*` in a name
        yield key, json.dumps(node)
        return
    for name, child in node.items():
        if name != "interval":
            yield from _leaves(f"{key}.{name}", child)
