"""From a config to what trains: data loaded and divided, model, optimizer and schedule built and seeded."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from sweep.config.metrics import METRICS, direction_of, loss_name
from sweep.config.nodes import steps_per_epoch
from sweep.config.overrides import sets
from sweep.config.schema import Config
from sweep.data import Samples
from sweep.data.split import Splits, divide
from sweep.tracking.description import dataset
from sweep.trial import build
from sweep.utils.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sweep.training.loop import TrainingLoop
    from sweep.training.schedule import Schedule
    from sweep.training.tensors import TensorData


BATCH_SIZE = "trainer.batch_size"


@dataclass(frozen=True)
class Data:
    """What a trial trains on. description: as MLflow's data sets have it."""

    samples: Samples
    splits: Splits
    description: dict[str, Any]


def load_data(config: Config) -> Data:
    """Loads and divides the data. Raises ConfigError."""
    samples = build.samples(config.data)
    splits = divide(samples, config.split)
    return Data(samples, splits, dataset(samples, splits))


def data_key(config: Config, *more: Any) -> str:
    """Return a text that configs share if their data, their split and `more` are equal."""
    return json.dumps([config.data, asdict(config.split), *more], sort_keys=True, default=str)


class RememberedData:
    """Loads data as `load_data` does, and the same data once only."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._data: Data | None = None

    def __call__(self, config: Config) -> Data:
        key = data_key(config)
        if self._data is None or key != self._key:
            self._key, self._data = key, load_data(config)
        return self._data


def new_model(config: Config, samples: Samples, batch: "Tensor", seen_before: bool = False) -> "nn.Module":
    """The trial's model with its initial weights, on the device of `batch`, which it was tried on.

    is_known: whether one like it was tried before. Seeds the global generators; the caller puts them back. Raises
    ConfigError.
    """
    from torch.nn.parameter import UninitializedParameter

    from sweep.training.runtime import check_model, seed_generators

    seed_generators(config.trainer.seed, "init")
    model = build.model(config.model, samples).to(batch.device)
    if not seen_before or any(isinstance(weight, UninitializedParameter) for weight in model.parameters()):
        check_model(model, batch, samples.out_features)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ConfigError("model._target_", f"{config.model['_target_']} has no weights to train")
    return model


def new_schedule(config: Config, n_train: int, shapes: "list[torch.Size]") -> "Schedule":
    """The trial's schedule. Raises ConfigError."""
    from sweep.training.schedule import Schedule

    trainer = config.trainer
    n_steps = steps_per_epoch(n_train, trainer.batch_size)
    make_scheduler = build.scheduler(config.scheduler, n_steps, trainer.epochs, direction_of(trainer.monitored))
    return Schedule(build.optimizer(config.optimizer), make_scheduler, build.interval(config.scheduler), shapes)


def new_loop(config: Config, samples: Samples, tensors: "TensorData", model: "nn.Module") -> "TrainingLoop":
    """The loop that trains a model with its initial weights. Seeds the global generators; raises ConfigError."""
    from sweep.training.evaluate import loss_function
    from sweep.training.loop import TrainingLoop
    from sweep.training.runtime import seed_generators

    trainer = config.trainer
    schedule = new_schedule(config, len(tensors.train.x), [weight.shape for weight in model.parameters()])
    seed_generators(trainer.seed, "train")  # dropout, and whatever a user's model draws
    return TrainingLoop(
        model=model,
        optimizer=build.optimizer(config.optimizer)(model.parameters()),
        schedule=schedule,
        loss_fn=loss_function(trainer.loss, samples.task),
        data=tensors,
        trainer=trainer,
        step_points=config.tracking.step_points,
    )


@contextmanager
def prepared(config: Config, data: Data) -> Iterator["TrainingLoop"]:
    """Everything built and seeded, under the process-wide settings that training needs."""
    from sweep.training.runtime import check_last_batch, pick_device, reproducible, set_threads
    from sweep.training.tensors import to_device

    trainer = config.trainer
    device = pick_device(trainer.device)
    with reproducible(device):
        tensors = to_device(data.splits, device)
        batch = tensors.train.x[: trainer.batch_size]
        model = new_model(config, data.samples, batch)
        check_last_batch(model, tensors.train.x, trainer.batch_size)
        set_threads(trainer.threads, model, batch)
        yield new_loop(config, data.samples, tensors, model)


def check_data(data: Data, config: Config) -> None:
    """What the config and the data together reveal, told before torch is loaded. Raises ConfigError."""
    loss_name(config.trainer.loss, data.samples.task)
    check_monitor(data, config)
    check_batch_size(config, len(data.splits.train.x))


def check_batch_size(config: Config, n_train: int) -> None:
    """Raises ConfigError for a batch that the training split cannot fill."""
    if config.trainer.batch_size > n_train:
        raise ConfigError(
            BATCH_SIZE, f"is {config.trainer.batch_size}, more than the {n_train} samples to train on; lower it"
        )


def check_monitor(data: Data, config: Config) -> None:
    """Raises ConfigError where trials on such data have no curve of that name."""
    monitor = config.trainer.monitored
    known = ["train/loss", *(name for name in metric_names(data) if name.startswith("val/"))]
    if monitor not in known:
        message = f"trials on this data have no '{monitor}'; choose of: {', '.join(known)}"
        raise ConfigError("trainer.monitor", message)


def with_fitting_batch(config: Config, n_train: int) -> Config:
    """Return the config with a batch that the training split can fill, where the batch size is a default.

    A default larger than the split becomes the whole split. A batch size that the command line or a program sets stays
    as it is, for `check_batch_size` to refuse.
    """
    given = config.overrides is None or any(sets(o, BATCH_SIZE) for o in config.overrides)
    if given or config.trainer.batch_size <= n_train:
        return config
    return replace(config, trainer=replace(config.trainer, batch_size=n_train))


def smaller_batch_text(before: Config, after: Config) -> str | None:
    """Say in a line that the default batch size was lowered; None if it was not."""
    was, now = before.trainer.batch_size, after.trainer.batch_size
    return None if was == now else f"{BATCH_SIZE}: {now} instead of {was}; there are {now} samples to train on"


def metric_names(data: Data) -> list[str]:
    """Return the names of what trials on such data are measured by on `val` and `test`."""
    names = [f"{part}/{name}" for part in ("val", "test") for name in ("loss", *METRICS[data.samples.task])]
    return [name for name in names if name not in undefined_metrics(data)]


def undefined_metrics(data: Data) -> list[str]:
    """Return the names of metrics that say nothing: r2 where no target varies over the split."""
    if data.samples.task != "regression":
        return []
    parts = {"val": data.splits.val.y, "test": data.splits.test.y}
    return [f"{part}/r2" for part, y in parts.items() if (y.max(axis=0) == y.min(axis=0)).all()]
