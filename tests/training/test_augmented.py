"""sweep/training/augmented.py: arrays whose training samples are changed at random train as torch datasets do."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RecordingTrial, as_file
from torch import Tensor

from sweep import ConfigError, Samples, compose
from sweep.config.schema import Config, validate
from sweep.training.loop import TrainingLoop
from sweep.trial.checks import check_data
from sweep.trial.prepare import divided, load_samples, prepared
from sweep.utils.errors import Interrupted, TrainingFailed
from sweep.utils.signals import StopRequest

SMALL = ("model.widths=[8]", "trainer.batch_size=16", "trainer.epochs=3")
N_WORKERS = pytest.mark.parametrize("n_workers", [0, pytest.param(2, marks=pytest.mark.process)])


def config_of(*overrides: str) -> Config:
    config = validate(compose([*SMALL, *overrides]))
    config.tracking.step_points = 1_000_000
    return config


@contextmanager
def loop_of(samples: Samples, *overrides: str) -> Iterator[TrainingLoop]:
    config = config_of(*overrides)
    data = divided(samples, config)
    check_data(data, config)
    with prepared(config, data) as loop:
        yield loop


def trained(samples: Samples, *overrides: str) -> tuple[RecordingTrial, dict[str, float]]:
    observed = RecordingTrial()
    with loop_of(samples, *overrides) as loop:
        loop.run(observed)
        return observed, loop.test(None)


def sine(augment: Callable[[Any], Any] | None, *overrides: str) -> Samples:
    samples = load_samples(config_of("data.n=100", *overrides))
    assert isinstance(samples, Samples)
    return replace(samples, x=samples.x.astype(np.float32), augment=augment)


def shaken(x: Tensor) -> Tensor:
    """Changes the sample in place, as a transform may, and draws from two generators."""
    return x.add_(0.3 * torch.randn(x.shape) + 0.3 * float(np.random.normal()))  # noqa: NPY002


@pytest.mark.parametrize("more", [(), ("trainer.accumulate=2",), ("loader.drop_last=true",)])
def test_augmenting_nothing_trains_bit_by_bit_as_without(more: tuple[str, ...]) -> None:
    samples = replace(sine(None), weights=np.linspace(0, 2, 100))
    dropped = "loader.drop_last=true" in more
    n = 64 if dropped else 70  # of 70 training samples
    found, tested = trained(replace(samples, augment=torch.clone), *more)
    assert len(found.points) == 3 * -(-n // (32 if "trainer.accumulate=2" in more else 16))
    if not dropped:  # which arrays refuse
        expected, also = trained(samples, *more)
        assert (found.points, found.epochs, tested) == (expected.points, expected.epochs, also)


@N_WORKERS
def test_what_is_drawn_follows_from_the_seed_and_neither_from_workers_nor_from_a_resume(n_workers: int) -> None:
    samples, workers = sine(shaken), f"loader.num_workers={n_workers}"
    before = samples.x.copy()
    complete, tested = trained(samples)
    assert complete.points != trained(samples, "seed=1")[0].points
    stop, states = StopRequest(), list[Any]()

    class Stopping(RecordingTrial):
        @property
        def should_stop(self) -> bool:  # asked after each update
            if loop.step == 7:  # inside the second epoch
                stop.signum = 2
            return super().should_stop

    first = Stopping(stop=stop, on_save=lambda state: states.append(as_file(state)))
    with pytest.raises(Interrupted), loop_of(samples, workers) as loop:
        loop.run(first)
    second = RecordingTrial.again(first)
    with loop_of(samples, workers) as loop:
        loop.load_state_dict(torch.load(io.BytesIO(states[-1]), weights_only=True))
        loop.run(second)
        assert loop.test(None) == tested
    assert (second.points, second.epochs) == (complete.points, complete.epochs)
    assert np.array_equal(samples.x, before), "the arrays are not changed"


def test_a_function_gets_samples_in_their_own_units_and_only_those_to_train_on() -> None:
    seen: list[float] = []

    def watch(x: Tensor) -> Tensor:
        seen.append(x.item())
        return x

    samples = sine(watch)
    config = config_of("data.n=100")
    splits = divided(samples, config).splits
    trained(samples)
    assert {*seen} == {*samples.x[splits.train_rows].astype(np.float32).ravel().tolist()}


@pytest.mark.parametrize(
    ("augment", "says"),
    [
        (
            lambda x: x[:, :2],
            "returned shape (3, 2, 4) for a sample of shape (3, 4, 4); a model sees samples of one sha",
        ),
        (lambda x: x.numpy(), "returned a ndarray, not a tensor"),
        (lambda x: (255 * x).to(torch.uint8), "returned torch.uint8 for a sample of torch.float32"),
        (lambda x: x / None, "TypeError: "),
    ],
)
def test_a_function_that_cannot_do_it_is_one_line(augment: Any, says: str) -> None:
    rng = np.random.default_rng(0)
    images = Samples(
        name="images", task="classification", x=rng.random((60, 3, 4, 4)), y=np.arange(60) % 2, augment=augment
    )
    with pytest.raises(ConfigError) as error, loop_of(images):
        pass
    assert error.value.key == "data.augment"
    assert error.value.problem.startswith("augmented sample[0]: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_function_that_fails_later_fails_the_run_in_one_line() -> None:
    n = 0

    def fails(x: Tensor) -> Tensor:
        nonlocal n
        n += 1
        if n > 40:
            raise RuntimeError("no more\nof this")
        return x

    with pytest.raises(TrainingFailed, match=r"augmented sample\[\d+\]: RuntimeError: no more of this"):
        trained(sine(fails))
