"""sweep/training/loaders.py: torch datasets train as arrays do, and can be stopped anywhere."""

import copy
import io
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RecordingTrial, as_file
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import Dataset, TensorDataset
from torch_datasets import AsDict, Curve, StatefulStream, Stream, curve
from torchmetrics import MeanAbsoluteError

from sweep import ConfigError, Datasets, Samples, compose
from sweep.config.nodes import Loader, Trainer
from sweep.config.schema import Config, validate
from sweep.tasks import TensorTask
from sweep.training.data import describe, n_samples, on_device
from sweep.training.evaluate import evaluate
from sweep.training.loaders import LoaderData, inspected
from sweep.training.loop import TrainingLoop
from sweep.training.seeded_datasets import SeededStream, StreamPass
from sweep.trial.checks import check_data
from sweep.trial.prepare import divided, load_data, load_samples, prepared
from sweep.utils.errors import Interrupted, TrainingFailed
from sweep.utils.signals import StopRequest

CPU = torch.device("cpu")
SMALL = ("model.widths=[8]", "model.dropout=0.2", "trainer.batch_size=16", "trainer.epochs=3")  # 5 updates an epoch
WORKERS = pytest.mark.parametrize("n_workers", [0, pytest.param(2, marks=pytest.mark.process)])


def config_of(*overrides: str) -> Config:
    return validate(compose([*SMALL, *overrides]))


@contextmanager
def loop_of(datasets: Datasets | Samples, *overrides: str) -> Iterator[TrainingLoop]:
    config = config_of(*overrides)
    config.tracking.step_points = 1_000_000
    data = divided(datasets, config)
    check_data(data, config)
    with prepared(config, data) as loop:
        yield loop


def trained(datasets: Datasets | Samples, *overrides: str) -> tuple[RecordingTrial, dict[str, float]]:
    """The curves, and the metrics on the test split."""
    observed = RecordingTrial()
    with loop_of(datasets, *overrides) as loop:
        loop.run(observed)
        return observed, loop.test(None)


def loaded(data: LoaderData, trainer: Trainer, n: int, step: int = 0) -> list[Tensor]:
    """The targets of the next `n` updates."""
    updates = data.updates(trainer, step)
    return [torch.cat([y for _, y in next(updates)]) for _ in range(n)]


# Numbers


@pytest.mark.parametrize(
    "more", [(), ("trainer.accumulate=2",), ("trainer.val_interval=3 steps",), ("trainer.ema=0.9",)]
)
def test_a_dataset_trains_as_the_same_samples_in_arrays_do(more: tuple[str, ...]) -> None:
    splits = load_data(config_of("data.n=96")).splits
    train, val, test = (
        TensorDataset(torch.from_numpy(part.x), torch.from_numpy(part.y))
        for part in (splits.train, splits.val, splits.test)
    )
    wanted, tested = trained(load_samples(config_of("data.n=96")), *more)
    found, of_datasets = trained(Datasets(train, val, test, task="regression"), *more)
    assert found.points == wanted.points
    same = ("loss", "r2")  # the others are in the target's own units
    for epoch, metrics in wanted.epochs.items():
        names = [name for name in metrics if not name.startswith("val/") or name.endswith(same)]
        assert [found.epochs[epoch][name] for name in names] == pytest.approx([metrics[n] for n in names], rel=1e-5)
    assert of_datasets["test/loss"] == pytest.approx(tested["test/loss"], rel=1e-6)


def test_a_split_is_evaluated_over_all_samples_whatever_the_batches_are() -> None:
    def spread(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).std()  # not a mean over samples

    data = LoaderData(curve(noise=0.0), Loader(), Trainer(batch_size=16), CPU)
    task = TensorTask(nn.functional.huber_loss, {"spread": spread, "mae": MeanAbsoluteError()}, 1)
    x, y = torch.linspace(-0.95, 1, 21)[:, None], torch.sin(3 * torch.linspace(-0.95, 1, 21))[:, None]
    found = evaluate(lambda inputs: inputs**2, data.val, task)
    assert [*found] == ["loss", "spread", "mae"]
    assert found["loss"] == pytest.approx(nn.functional.huber_loss(x**2, y).item(), rel=1e-6)
    assert found["spread"] == pytest.approx((x**2 - y).std().item(), rel=1e-6)
    assert found["mae"] == pytest.approx((x**2 - y).abs().mean().item(), rel=1e-6)


def test_drop_last_leaves_out_the_small_batch_of_training_only() -> None:
    trainer = Trainer(batch_size=16)
    data = LoaderData(curve(), Loader(drop_last=True), trainer, CPU)
    assert data.n_train == 64
    assert [len(y) for y in loaded(data, trainer, 5)] == [16, 16, 16, 16, 16]
    assert sum(n_samples(batch) for batch in data.val.batches()) == 21


def test_a_task_of_its_own_takes_batches_of_any_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", "torch_datasets.*")
    datasets = Datasets(AsDict(Curve()), AsDict(Curve(21)), out_features=1, in_shape=(1,))
    more = ("task._target_=torch_datasets.Weighted", "+task.metrics.mae._target_=torchmetrics.MeanAbsoluteError")
    found, tested = trained(datasets, *more, "trainer.accumulate=2", "optimizer.lr=0.03", "scheduler=constant")
    assert found.curve("val/loss")[-1] < found.curve("val/loss")[0]
    assert found.curve("val/mae")[-1] < found.curve("val/mae")[0]
    assert tested == {}  # there is no test split


# Draws


@WORKERS
def test_draws_depend_on_seed_epoch_and_batch_alone(n_workers: int) -> None:
    trainer = Trainer(batch_size=16)
    one = loaded(LoaderData(curve(), Loader(), trainer, CPU), trainer, 10)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    data = LoaderData(curve(), Loader(num_workers=n_workers, persistent_workers=n_workers > 0), trainer, CPU)
    try:
        assert all(map(torch.equal, loaded(data, trainer, 10), one))
        assert all(map(torch.equal, loaded(data, trainer, 3, step=6), one[6:9]))
    finally:
        data.close()
    noise = [torch.cat(part).sort().values for part in (one[:5], one[5:])]
    assert not torch.equal(*noise), "the second epoch has the draws of the first"
    other = Trainer(batch_size=16, seed=1)
    assert not torch.equal(loaded(LoaderData(curve(), Loader(), other, CPU), other, 1)[0], one[0])


@pytest.mark.process
def test_a_run_comes_to_the_same_with_any_number_of_workers() -> None:
    """Dropout in this process too draws the same."""
    (with_workers, tested), (alone, tested_alone) = trained(curve(), "loader.num_workers=2"), trained(curve())
    assert with_workers.points == alone.points
    assert with_workers.epochs == alone.epochs
    assert tested == tested_alone


# Stopping


@pytest.mark.parametrize(
    ("kind", "n_workers", "at"),
    [
        *((kind, 0, at) for kind in ("map", "sized", "stream", "stateful") for at in (3, 5, 8)),
        *(
            pytest.param(*case, marks=pytest.mark.process)
            for case in (("map", 2, 8), ("sized", 2, 3), ("stream", 2, 8))
        ),
    ],
)
def test_a_run_stopped_inside_an_epoch_goes_on_bitwise(kind: str, n_workers: int, at: int) -> None:
    loader = (f"loader.num_workers={n_workers}", "trainer.max_steps=13", "trainer.accumulate=1")
    wanted, tested = trained(curve(kind=kind), *loader)

    stop, states = StopRequest(), list[Any]()

    class Stopping(RecordingTrial):
        @property
        def should_stop(self) -> bool:  # asked after each update
            if loop.step == at:
                stop.signum = 2
            return super().should_stop

    first = Stopping(stop=stop, on_save=lambda state: states.append(as_file(state)))
    with pytest.raises(Interrupted), loop_of(curve(kind=kind), *loader) as loop:
        loop.run(first)
    datasets = curve(kind=kind)
    second = RecordingTrial.again(first)
    with loop_of(datasets, *loader) as loop:
        loop.load_state_dict(torch.load(io.BytesIO(states[-1]), weights_only=True))
        assert loop.step == at
        loop.run(second)
        assert loop.test(None) == tested
    assert second.points == wanted.points
    assert second.epochs == wanted.epochs


# Streams


def test_a_stream_without_a_length_has_epochs_of_max_steps() -> None:
    observed, _ = trained(curve(kind="stream"), "trainer.max_steps=20")  # 5 updates a pass, 7 an epoch
    assert sorted(observed.points) == [*range(1, 21)]
    assert [*observed.epochs] == [1, 2, 3]
    trainer = Trainer(batch_size=16, max_steps=20, epochs=3)
    data = LoaderData(curve(kind="stream", noise=0.0), Loader(), trainer, CPU)
    updates = loaded(data, trainer, 10)
    assert [len(y) for y in updates] == [16, 16, 16, 16, 4] * 2  # the passes follow each other
    assert_close(torch.cat(updates[:5]).flatten(), torch.sin(3 * torch.linspace(-1, 1, 68)))


def test_trials_do_not_move_each_others_position_in_a_stateful_stream() -> None:
    datasets, trainer = curve(kind="stateful"), Trainer(batch_size=16, max_steps=20)
    data = [LoaderData(datasets, Loader(), trainer, CPU) for _ in range(2)]
    turns = [loaded(each, trainer, 2) for each in data] + [loaded(each, trainer, 2, step=2) for each in data]
    alone = loaded(LoaderData(curve(kind="stateful"), Loader(), trainer, CPU), trainer, 4)
    for i in range(2):
        assert all(map(torch.equal, turns[i] + turns[i + 2], alone))


def test_a_stateful_stream_is_not_read_again() -> None:
    trainer = Trainer(batch_size=16, max_steps=20)
    wanted = loaded(LoaderData(curve(kind="stateful"), Loader(), trainer, CPU), trainer, 9)
    data = LoaderData(curve(kind="stateful"), Loader(), trainer, CPU)
    loaded(data, trainer, 7)
    state = copy.deepcopy(data.state_dict())
    again = LoaderData(curve(kind="stateful"), Loader(), trainer, CPU)
    again.load_state_dict(state)
    assert all(map(torch.equal, loaded(again, trainer, 2, step=7), wanted[7:]))
    stream = again._train._dataset
    assert isinstance(stream, StatefulStream)
    assert stream.opened_at == 32


def test_a_pass_that_had_ended_is_not_read_again() -> None:
    streams = [SeededStream(StatefulStream(Curve(20)), "train", 0, 16, counts=True) for _ in range(2)]
    first, again = (StreamPass(stream, 1) for stream in streams)
    assert len([*first]) == 20
    again.load_state_dict(first.state_dict())
    assert [*again] == []


def test_a_stream_is_resumed_twice() -> None:
    trainer = Trainer(batch_size=16, max_steps=20)
    wanted = loaded(LoaderData(curve(kind="stream"), Loader(), trainer, CPU), trainer, 9)
    state, step = None, 0
    for n in (2, 5, 2):
        data = LoaderData(curve(kind="stream"), Loader(), trainer, CPU)
        data.load_state_dict(state)
        assert all(map(torch.equal, loaded(data, trainer, n, step), wanted[step : step + n]))
        state, step = copy.deepcopy(data.state_dict()), step + n


# What cannot be used


class NoLength(Curve):
    __len__ = None  # pyright: ignore


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Datasets(Curve()), "data: Datasets has no val; give one, such as"),
        (lambda: Datasets(Curve(), {}), "data: Datasets.val is a dict, not a torch dataset"),
        (lambda: Datasets(Curve, Curve()), "data: Datasets.train is the class Curve, not a torch dataset"),
        (lambda: Datasets(7, Curve()), "data: Datasets.train is a int, not a torch dataset"),
        (lambda: Datasets(iter([1]), Curve()), "which can be read once; give a torch.utils.data.IterableDataset"),
        (lambda: Datasets(torch.utils.data.DataLoader(Curve()), Curve()), "is a DataLoader; give its dataset"),
        (lambda: Datasets(Curve(0), Curve()), "data: Datasets.train is empty"),
        (lambda: Datasets(NoLength(), Curve()), "is a NoLength without __len__"),
        (lambda: Datasets(Curve(), Curve(), None, 3), "Datasets.collate_fn is a int, not a function"),  # pyright: ignore
        (lambda: Datasets(Curve(), Curve(), task="classification"), "needs classes=[...], or out_features=..."),
        (
            lambda: Datasets(Curve(), Curve(), task="classification", classes=("a", "b"), out_features=3),
            "names 2 classes, but out_features is 3",
        ),
        (lambda: Datasets(Curve(), Curve(), task="ranking"), "data.task: 'ranking' is unknown"),  # pyright: ignore
        (
            lambda: inspected(curve(n=2, fault="raise")),
            "data: Datasets.train[0]: ValueError: no such point in two lines",
        ),
        (lambda: inspected(curve(collate=False)), "data: Datasets.collate_fn: RuntimeError: cannot stack 2 samples"),
        (lambda: inspected(Datasets(Stream(Curve(0)), Curve())), "data: Datasets.train has no samples"),
        (
            lambda: inspected(Datasets([(torch.zeros(1), torch.zeros(()))] * 9, Curve(), task="regression")),
            "gives targets of shape (2,) for a batch of 2; regression needs (B, n_targets)",
        ),
    ],
)
def test_datasets_that_cannot_be_used_are_refused_in_one_line(make: Any, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("datasets", "overrides", "says"),
    [
        (curve(kind="stream"), (), "trainer.max_steps: is needed, since the training dataset has no length"),
        (curve(n=10), (), "trainer.batch_size: is 16, more than the 10 samples to train on; lower it"),
        (curve(n=10), ("loader.drop_last=true",), "trainer.batch_size: is 16, more than the 10 samples"),
        (curve(), ("split.folds=3",), "split.folds: is for arrays, but the data are torch datasets"),
        (curve(), ("split=stratified",), "split: is stratified, but the data are torch datasets"),
        (
            curve(),
            ("split.val=0.2",),
            "split.val: is 0.2, but it is for arrays, and the data are torch datasets; divide them in the data's "
            "target, and set split.val=0.15",
        ),
        (curve(), ("split.test=0.2",), "split.test: is 0.2, but it is for arrays"),
        (curve(), ("split.seed=3",), "split.seed: is 3, but it is for arrays"),
        (
            curve(),
            ("split.normalize=false",),
            "split.normalize: is False, but it is for arrays, and the data are torch",
        ),
        (
            curve(),
            ("experiment=debug",),
            "split.max_samples: is 64, but it is for arrays, and the data are torch datasets; give smaller ones, such "
            "as torch.utils.data.Subset, and set split.max_samples=null",
        ),
        (curve(task=None), (), "task: is auto, but Datasets names no task"),
        (
            curve(task=None),
            ("task=regression",),
            "task: Regression needs data for regression, but these are for no task",
        ),
        (curve(), ("task=classification",), "task: Classification needs data for classification"),
        (curve(), ("trainer.monitor=val/accuracy",), "trainer.monitor: trials on this data have no 'val/accuracy'"),
        (
            Datasets(AsDict(Curve()), AsDict(Curve()), task="regression", out_features=1, in_shape=(1,)),
            (),
            "data: gives a batch with at (16, 1), height (16, 1), weight (16,), and the task Regression takes pairs",
        ),
        (
            Datasets(AsDict(Curve()), AsDict(Curve()), task="regression", out_features=1),
            (),
            "model.in_features: MLP needs it",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_datasets_is_refused(
    datasets: Datasets, overrides: tuple[str, ...], says: str
) -> None:
    with pytest.raises(ConfigError) as error, loop_of(datasets, *overrides):
        pass
    assert str(error.value).startswith(says)


@WORKERS
@pytest.mark.parametrize("kind", ["map", "sized"])
def test_a_dataset_that_raises_fails_the_run_in_one_line(kind: str, n_workers: int) -> None:
    datasets = curve(kind=kind, fault="raise")
    with pytest.raises(TrainingFailed) as error, loop_of(datasets, f"loader.num_workers={n_workers}") as loop:
        loop.run(RecordingTrial())
    where = "Datasets.train[66]" if kind == "map" else "Datasets.train"
    assert f": {where}: ValueError: no such point in two lines (HYDRA" in str(error.value)
    assert "line" in str(error.value.__cause__.__cause__), "the traceback can be shown"  # pyright: ignore


@pytest.mark.process
def test_a_worker_that_dies_fails_the_run_in_one_line() -> None:
    with pytest.raises(TrainingFailed) as error, loop_of(curve(fault="die"), "loader.num_workers=2") as loop:
        loop.run(RecordingTrial())
    assert "a worker process that loads data died (" in str(error.value)
    assert "lower loader.num_workers, where 0 loads in the process that trains" in str(error.value)


def test_a_split_that_becomes_empty_fails_the_run() -> None:
    datasets = Datasets(Curve(), Stream(Curve(0)), task="regression")
    with pytest.raises(TrainingFailed, match=r"Datasets\.val has no samples"), loop_of(datasets) as loop:
        loop.run(RecordingTrial())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_workers": -1}, "loader.num_workers: must be 0 to "),
        ({"prefetch_factor": 0, "num_workers": 1}, "loader.prefetch_factor: must be >= 1 batch or null, got 0"),
        ({"prefetch_factor": 2}, "loader.prefetch_factor: is for worker processes; set loader.num_workers"),
        ({"persistent_workers": True}, "loader.persistent_workers: is for worker processes"),
    ],
)
def test_loader_settings_that_make_no_sense_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        Loader(**settings)
    assert str(error.value).startswith(says)


def test_drop_last_is_refused_for_arrays() -> None:
    config = config_of("data.n=96", "loader.drop_last=true")
    with pytest.raises(ConfigError, match=r"loader\.drop_last: is for torch datasets, but the data are arrays"):
        check_data(load_data(config), config)


# Batches


def test_a_batch_of_any_structure_is_described_counted_and_moved() -> None:
    x = torch.zeros(3, 2)
    assert describe((x, x)) == "a batch of shape (3, 2)"
    assert describe(x) == "a batch of shape (3, 2)"
    assert describe({"a": [x, 5]}) == "a batch with a.0 (3, 2), a.1 int"
    assert describe("text") == "a str"
    assert [n_samples(batch) for batch in ((x, x), {"a": [5, x]}, x, [1, 2], 5)] == [3, 3, 3, 2, 1]
    moved = on_device({"a": (x, "text")}, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["a"][1] == "text"


# Metrics that the data do not allow


class Kinds(Dataset):
    """Samples of two classes, of which only the first `n_of_second` are of the second."""

    def __init__(self, n_of_second: int) -> None:
        self.n_of_second = n_of_second

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((1,), index / 40), int(index < self.n_of_second)

    def as_tensors(self) -> TensorDataset:
        x, y = zip(*(self[i] for i in range(len(self))), strict=True)
        return TensorDataset(torch.stack(x), torch.tensor(y))


AUROC = ("task=binary", "task/metrics=[accuracy,auroc]")
NO_POSITIVES = "No positive samples in targets, true positive value should be meaningless"


def of_kinds(train: Any, val: Any, test: Any = None) -> Datasets:
    return Datasets(train, val, test, task="classification", out_features=2)


@pytest.mark.parametrize("part", ["val", "test"])
def test_torchs_own_datasets_are_asked_before_training_whether_they_allow_a_metric(part: str) -> None:
    good, one_class = Kinds(20).as_tensors(), Kinds(0).as_tensors()
    nested = torch.utils.data.ConcatDataset([torch.utils.data.Subset(one_class, [3, 1, 2]), one_class])
    with (
        pytest.raises(ConfigError, match=NO_POSITIVES) as error,
        loop_of(of_kinds(good, **{"val": good, part: nested}), *AUROC),
    ):
        pass
    assert error.value.key == "task.metrics.auroc"
    assert error.value.problem.startswith(f"cannot be computed on Datasets.{part}: ")
    assert error.value.problem.endswith(f"; leave it out, or put other samples into Datasets.{part}")
    second = torch.utils.data.Subset(Kinds(20).as_tensors(), range(15, 25))
    assert trained(of_kinds(good, second), *AUROC)[0].curve("val/auroc")


def test_any_other_dataset_ends_the_run_at_its_first_validation() -> None:
    observed = RecordingTrial()
    with pytest.raises(ConfigError) as error, loop_of(of_kinds(Kinds(20), Kinds(0)), *AUROC) as loop:
        loop.run(observed)
    assert str(error.value).startswith(f"task.metrics.auroc: cannot be computed on Datasets.val: {NO_POSITIVES}")
    assert observed.epochs == {}, "no misleading value is recorded"


def test_after_the_training_such_a_metric_is_left_out_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    _, tested = trained(of_kinds(Kinds(20), Kinds(20), Kinds(0)), *AUROC)
    assert [*tested] == ["test/loss", "test/accuracy"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("warning: task.metrics.auroc: cannot be computed on Datasets.test: ")
    assert line.endswith("; it is left out")


def test_a_metric_that_the_model_alone_makes_meaningless_for_a_while_is_no_fault_of_the_data() -> None:
    """A model that says the same for all samples has no correlation with them, and torchmetrics warns of that."""
    more = ("task/metrics=[]", "+task.metrics.r={_target_: torchmetrics.PearsonCorrCoef, goal: maximize}")
    datasets = Datasets(Curve(), Curve(21), task="regression")
    with warnings.catch_warnings(), loop_of(datasets, "task=regression", *more) as loop:
        warnings.simplefilter("ignore")
        for weight in loop.model.parameters():
            torch.nn.init.zeros_(weight)
        found = evaluate(loop.forward, loop.data.val, loop.task)  # pyright: ignore[reportArgumentType]
    assert "r" in found
