"""Prepare training from a config: load and divide the data, build and seed the model, optimizer and schedule."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sweep.config.callback_node import declared_by
from sweep.config.epochs import UNLIMITED, epoch_size, n_steps, steps_per_epoch
from sweep.config.nodes import Split
from sweep.config.optimizer_node import frozen_of, groups_of
from sweep.config.overrides import sets, setting
from sweep.config.schema import Config
from sweep.config.task_node import data_node
from sweep.data import Datasets, Samples
from sweep.data.split import Splits, prepare
from sweep.tracking.description import dataset, dataset_of_datasets
from sweep.trial import build
from sweep.trial.build_task import build_task
from sweep.utils.errors import ConfigError
from sweep.utils.paths import with_absolute_path

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from sweep.tasks import Task, TensorTask
    from sweep.training.data import Batch, TrainingData
    from sweep.training.loaders import LoaderData
    from sweep.training.loop import TrainingLoop
    from sweep.training.schedule import Schedule


BATCH_SIZE = "trainer.batch_size"
_DEFAULT_SPLIT = Split()
_OF_DATASETS = {  # what to do instead of setting these keys
    "val": "divide them in the data's target",
    "test": "divide them in the data's target",
    "seed": "divide them in the data's target",
    "normalize": "they are never normalised, so leave it out",
    "max_samples": "give smaller ones, such as torch.utils.data.Subset",
}


@dataclass(frozen=True)
class Data:
    """The data of a trial: arrays or torch datasets.

    Attributes:
        content: all samples with a model's inputs, or the datasets. Both say what a model and a task need to know.
        divided: the samples, divided; None for torch datasets, which are divided already.
        description: as MLflow's data sets.
    """

    content: Samples | Datasets
    divided: Splits | None
    description: dict[str, Any]

    @property
    def samples(self) -> Samples:
        """The samples of data that are arrays."""
        assert isinstance(self.content, Samples)
        return self.content

    @property
    def splits(self) -> Splits:
        """The splits of data that are arrays."""
        assert self.divided is not None
        return self.divided

    @property
    def n_train(self) -> int:
        """The number of samples to train on; UNLIMITED if it is not known."""
        if isinstance(self.content, Datasets):
            n = self.content.size("train")
            return UNLIMITED if n is None else n
        return len(self.splits.train.x)

    def epoch_size(self, config: Config) -> int:
        """Return the number of samples that an epoch trains on. Raises ConfigError if that needs trainer.max_steps."""
        return epoch_size(self.n_train, config.trainer, config.loader)

    def test_samples(self, targets: "NDArray", inputs: "NDArray") -> "tuple[NDArray, NDArray, NDArray]":
        """Return the numbers of the test split's samples, their targets, and the first inputs, in their own units.

        Args:
            targets: as a task gets them.
            inputs: the first ones, as a model gets them.
        """
        if self.divided is None:
            return np.arange(len(targets)), targets, inputs
        rows = self.splits.test_rows
        return rows, self.samples.y[rows], self.samples.x[rows[: len(inputs)]]

    @contextmanager
    def on_device(self, config: Config, device: "torch.device") -> "Iterator[TrainingData]":
        """Hold the data as the training loop needs them. Worker processes are ended at the end."""
        from sweep.training.tensors import to_device

        if isinstance(self.content, Datasets):
            with _loaded(self.content, config, device) as loaded:
                yield loaded
        elif self.content.augment is None:
            yield to_device(self.splits, device)
        else:
            from sweep.training.augmented import AugmentedSamples

            train = AugmentedSamples(self.content, self.splits)
            with _loaded(Datasets(train, val=train), config, device) as feed:  # only `train` is loaded
                yield replace(to_device(self.splits, device), feed=feed)


@contextmanager
def _loaded(datasets: Datasets, config: Config, device: "torch.device") -> "Iterator[LoaderData]":
    from sweep.training.loaders import LoaderData

    loaded = LoaderData(datasets, config.loader, config.trainer, device)
    try:
        yield loaded
    finally:
        loaded.close()


def load_samples(config: Config) -> Samples | Datasets:
    """Load the data. Raise ConfigError if they cannot be loaded."""
    return build.samples(data_node(config.data, config.task), split_columns(config))


def divided(samples: Samples | Datasets, config: Config) -> Data:
    """Divide the data. Raise ConfigError if they cannot be divided."""
    if isinstance(samples, Datasets):
        from sweep.training.loaders import inspected

        _refuse_to_divide(config)
        datasets, batch = inspected(samples)
        return Data(datasets, None, dataset_of_datasets(datasets, batch))
    inputs, splits = prepare(samples, config.split)
    return Data(inputs, splits, dataset(samples, inputs, splits))


def _refuse_to_divide(config: Config) -> None:
    """Raise ConfigError for a setting of the split that torch datasets cannot follow."""
    what = "torch datasets, which are divided already; leave it out"
    if config.split.folds is not None:
        raise ConfigError("split.folds", f"is for arrays, but the data are {what}")
    if config.split.kind != "random":
        raise ConfigError("split", f"is {config.split.kind}, but the data are {what}")
    for name, remedy in _OF_DATASETS.items():
        value, default = getattr(config.split, name), getattr(_DEFAULT_SPLIT, name)
        if value != default:
            message = f"is {value}, but it is for arrays, and the data are torch datasets; {remedy}"
            raise ConfigError(f"split.{name}", f"{message}, and set {setting(f'split.{name}', default)}")


def load_data(config: Config) -> Data:
    """Load and divide the data. Raise ConfigError if they cannot be loaded or divided."""
    return divided(load_samples(config), config)


def data_key(config: Config, *more: Any) -> str:
    """Return a text that is equal for configs with the same data, the same split and the same `more`."""
    return json.dumps([_node(config), asdict(config.split), *more], sort_keys=True, default=str)


def _node(config: Config) -> dict[str, Any]:
    return with_absolute_path(data_node(config.data, config.task))


def samples_key(config: Config) -> str:
    """Return a text that is equal for configs with the same samples, however they are divided."""
    return json.dumps([_node(config), split_columns(config)], sort_keys=True, default=str)


def split_columns(config: Config) -> dict[str, str | None]:
    """Return the columns that the split needs, as arguments of a data target."""
    return {"split_by": config.split.by, "split_column": config.split.column}


def new_model(
    config: Config,
    samples: Samples | Datasets,
    task: "TensorTask | Task",
    batch: "Batch",
    device: "torch.device",
    seen_before: bool = False,
) -> "nn.Module":
    """Build the model with its initial weights, check its output on a batch, and freeze what the config freezes.

    Seeds the global random generators. The caller restores them.

    Args:
        config: what to train.
        samples: the data, for the number of features.
        task: the loss. It is moved to the device and converted to the model's dtype.
        batch: of training samples.
        device: where to train.
        seen_before: True skips the check: a model of the same kind has passed it. A model with lazy weights is always
            checked, since its first batch sets their shapes.

    Raises:
        ConfigError: the model cannot be built, does not fit the data, or has nothing to train; or a pattern in
            `optimizer.freeze` matches no weight.
    """
    import torch
    from torch.nn.parameter import UninitializedParameter

    from sweep.tasks import TensorTask
    from sweep.training.checks import check_model
    from sweep.training.groups import freeze
    from sweep.training.runtime import seed_generators

    seed_generators(config.trainer.seed, "init")
    model = build.model(config.model, samples, getattr(task, "out_features", None)).to(device)
    if isinstance(task, TensorTask):
        task.to(device, next((w.dtype for w in model.parameters() if w.is_floating_point()), torch.float32))
    if not seen_before or any(isinstance(weight, UninitializedParameter) for weight in model.parameters()):
        check_model(model, batch, task, isinstance(samples, Samples) and samples.weights is not None)
    freeze(model, frozen_of(config.optimizer))
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ConfigError("model._target_", f"{config.model['_target_']} has no weights to train")
    return model


def new_schedule(config: Config, n_train: int, model: "nn.Module") -> "Schedule":
    """Build the schedule of the learning rate.

    Args:
        config: what to train.
        n_train: the number of training samples in an epoch.
        model: the model that the optimizer will train.

    Raises:
        ConfigError: the optimizer or the scheduler cannot be built, or the scheduler sets a value of a group.
    """
    from sweep.training.schedule import Schedule

    trainer = config.trainer
    n_updates, n_total = steps_per_epoch(n_train, trainer.update_size), n_steps(trainer, n_train)
    make_scheduler = build.scheduler(config.scheduler, n_updates, trainer.n_passes, config.monitor_direction, n_total)
    shadow = build.optimizer(config.optimizer, model, shadow=True)
    if not all("lr" in group for group in shadow.param_groups):
        raise ConfigError(
            "optimizer._target_",
            f"{config.optimizer['_target_']} has no learning rate that a schedule could set; choose another",
        )
    schedule = Schedule(shadow, make_scheduler, build.interval(config.scheduler))
    for pattern, values in groups_of(config.optimizer).items():
        for name in sorted(schedule.overwritten() & values.keys()):
            message = "the schedule sets it for all groups; leave it out, or set scheduler.cycle_momentum=false"
            raise ConfigError(f"optimizer.groups.{pattern}.{name}", message)
    return schedule


def new_loop(config: Config, task: "TensorTask | Task", data: "TrainingData", model: "nn.Module") -> "TrainingLoop":
    """Build the loop that trains `model`, which has its initial weights.

    Seeds the global random generators for training. Raises ConfigError if the optimizer or the scheduler cannot be
    built.
    """
    from sweep.training.callbacks import Callbacks
    from sweep.training.loop import TrainingLoop
    from sweep.training.runtime import seed_generators

    trainer = config.trainer
    declared_names = [declared_by(place, callback) for place, callback in enumerate(trainer.callbacks)]
    schedule = new_schedule(config, data.n_train, model)
    seed_generators(trainer.seed, "train")  # for dropout, and for a user's model that draws random numbers
    return TrainingLoop(
        model=model,
        optimizer=build.optimizer(config.optimizer, model),
        schedule=schedule,
        task=task,
        data=data,
        trainer=trainer,
        direction=config.monitor_direction,
        step_points=config.tracking.step_points,
        callbacks=Callbacks(build.callbacks(trainer.callbacks), declared_names),
    )


@contextmanager
def prepared(config: Config, data: Data) -> Iterator["TrainingLoop"]:
    """Hold a training loop that is built and seeded, under the process-wide settings that training needs.

    Torch's settings and the states of the random generators are restored at the end. Raises ConfigError if the config
    does not fit the data, or something in it cannot be built.
    """
    from sweep.tasks import TensorTask
    from sweep.training.checks import check_last_batch, check_metrics
    from sweep.training.data import is_pair, known_targets
    from sweep.training.runtime import pick_device, reproducible, set_threads

    trainer = config.trainer
    device = pick_device(trainer.device)
    with reproducible(device), data.on_device(config, device) as on_device:
        task = build_task(config.task, data.content, data.divided, device)
        batch = on_device.example(trainer.batch_size)
        model = new_model(config, data.content, task, batch, device)
        if isinstance(task, TensorTask):
            check_metrics(task, known_targets(on_device), of_datasets=data.divided is None)
        check_last_batch(model, batch, on_device.n_train, trainer.batch_size)
        set_threads(trainer.threads, model, batch[0] if is_pair(batch) else None)
        yield new_loop(config, task, on_device, model)


def with_fitting_batch(config: Config, n_train: int) -> Config:
    """Return the config, with a default batch size lowered to the size of the training split if it is larger.

    A batch size that the command line or a program sets stays as it is: `check_batch_size` refuses one that is too
    large.
    """
    given = config.overrides is None or any(sets(o, BATCH_SIZE) for o in config.overrides)
    if given or config.trainer.batch_size <= n_train:
        return config
    return replace(config, trainer=replace(config.trainer, batch_size=n_train))


def smaller_batch_text(before: Config, after: Config) -> str | None:
    """Return a line that says that the default batch size was lowered; None if it was not."""
    was, now = before.trainer.batch_size, after.trainer.batch_size
    return None if was == now else f"{BATCH_SIZE}: {now} instead of {was}; there are {now} samples to train on"
