"""sweep/testing.py: the checks pass for what sweep brings along, and name what is wrong with other things."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from torch.optim import SGD, Adamax

from sweep import Samples, Trial, compose
from sweep.config.schema import validate
from sweep.data.bundled import diabetes
from sweep.data.noisy_sine import noisy_sine
from sweep.testing import check_data_option, check_packed_rule, check_training_function
from sweep.trial.builtin import BuiltInTraining
from sweep.utils.errors import Pruned

N_EPOCHS = 3


def test_the_built_in_loop_passes(tmp_path: Path) -> None:
    train = BuiltInTraining(validate(compose([*SMALL, "model.dropout=0.2", "scheduler=cyclic"])))
    check_training_function(train, tmp_path)


def good(trial: Trial) -> None:
    """Its weight is the sum of the epochs."""
    state = trial.restore()
    weight = torch.zeros(()) if state is None else state["weight"]
    for epoch in range(trial.epoch + 1, N_EPOCHS + 1):
        weight = weight + epoch
        trial.report(epoch, {"val/loss": weight.item()})
        if trial.should_save:
            trial.save(epoch, {"weight": weight})
    trial.finish({"test/loss": weight.item()})


def reports_once(trial: Trial) -> None:
    trial.report(1, {"val/loss": 1.0})


def reports_nan(trial: Trial) -> None:
    for epoch in (1, 2):
        trial.report(epoch, {"val/loss": 1.0 if epoch == 1 else float("nan")})


def reports_backwards(trial: Trial) -> None:
    for epoch in (2, 1):
        trial.report(epoch, {"val/loss": 1.0})


def swallows_pruned(trial: Trial) -> None:
    for epoch in range(1, N_EPOCHS + 1):
        try:
            trial.report(epoch, {"val/loss": 1.0})
        except Pruned:
            continue


def never_saves(trial: Trial) -> None:
    for epoch in range(1, N_EPOCHS + 1):
        trial.report(epoch, {"val/loss": 1.0})


def forgets(trial: Trial) -> None:
    """Begins with other weights when it goes on."""
    weight = 0
    for epoch in range(trial.epoch + 1, N_EPOCHS + 1):
        weight += epoch
        trial.report(epoch, {"val/loss": float(weight)})
        trial.save(epoch, {})


def begins_again(trial: Trial) -> None:
    for epoch in range(1, N_EPOCHS + 1):
        trial.report(epoch, {"val/loss": 1.0})
        trial.save(epoch, {})


def test_a_plain_function_passes(tmp_path: Path) -> None:
    check_training_function(good, tmp_path)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (reports_once, "1 epochs are reported"),
        (reports_nan, "val/loss is nan in epoch 2"),
        (reports_backwards, "epoch 1 is reported after epoch 2"),
        (swallows_pruned, "must not be caught"),
        (never_saves, "nothing is saved"),
        (forgets, "other numbers"),
        (begins_again, "an epoch that was saved is trained again"),
    ],
)
def test_what_is_wrong_with_a_function_is_named(train: Callable[[Trial], None], message: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=message):
        check_training_function(train, tmp_path)


def test_data_options_pass() -> None:
    check_data_option(diabetes)
    check_data_option(partial(noisy_sine, n=50, noise=0.1, seed=0))


def test_data_that_differ_each_time_are_found_out() -> None:
    def load() -> Samples:
        x = np.random.default_rng().normal(size=(20, 2))
        return Samples(name="random", task="regression", x=x, y=x[:, 0])

    with pytest.raises(AssertionError, match="x differs from one call to the next"):
        check_data_option(load)


def test_an_optimizer_without_a_rule_is_named() -> None:
    check_packed_rule(SGD, [{"momentum": 0.5}, {"momentum": 0.9}])
    with pytest.raises(AssertionError, match="no rule for Adamax"):
        check_packed_rule(Adamax, [{}, {}])
    with pytest.raises(AssertionError, match="may not share a pass"):
        check_packed_rule(SGD, [{"momentum": 0.5}, {"momentum": 0.5, "nesterov": True}])
