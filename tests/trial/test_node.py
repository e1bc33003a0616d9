"""sweep/trial/node.py: `sweep.build`, for a training function of the user's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import sweep
from sweep import ConfigError, Samples, compose
from sweep.config.schema import validate
from sweep.trial.function import function_config

pytestmark = pytest.mark.targets("functions.*")


def given(*overrides: str) -> Any:
    """The config that a function gets."""
    return function_config(validate(compose(["trainer=function", "trainer.call=functions.built", *overrides])))


def test_each_group_is_built_as_sweep_builds_it() -> None:
    groups = ("model=mlp", "model.widths=[4]", "data=diabetes", "optimizer=sgd", "scheduler=onecycle")
    cfg = given(*groups, "optimizer.no_decay=norm_and_bias", "optimizer.weight_decay=0.1", "trainer.epochs=3")
    samples = sweep.build(cfg.data)
    assert isinstance(samples, Samples)
    model = sweep.build(cfg.model, samples)
    assert model(torch.zeros(2, 10)).shape == (2, 1)
    optimizer = sweep.build(cfg.optimizer, model)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    scheduler = sweep.build(cfg.scheduler, optimizer, steps_per_epoch=2, epochs=cfg.trainer.epochs)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(cfg.scheduler.max_lr, rel=0.2)


def test_weights_are_frozen_before_the_optimizer_is_made() -> None:
    cfg = given("optimizer=sgd", "optimizer.freeze=[0.*]")
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    sweep.build(cfg.optimizer, model)
    assert [weight.requires_grad for weight in model.parameters()] == [False, False, True, True]
    with pytest.raises(ConfigError, match=r"^optimizer.freeze: chooses weights by their names; give the model"):
        sweep.build(cfg.optimizer, model.parameters())


def test_what_you_offer_is_taken_by_a_target_that_has_it_and_a_node_that_leaves_it_out() -> None:
    cfg = given("model=mlp", "model.widths=[4]", "+net={_target_: torch.nn.Linear, out_features: 3}")
    layer = sweep.build(cfg.net, in_features=2, out_features=5, in_shape=(2,))
    assert (layer.in_features, layer.out_features) == (2, 3)
    model = sweep.build(cfg.model, in_features=2, out_features=1, in_shape=(2,))
    optimizer = sweep.build({"_target_": "torch.optim.LBFGS"}, model.parameters(), lr=0.5)
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        ("{_target_: torch.nn.Linear, out_featuers: 3}", "parts.net.out_featuers: Linear takes no such argument"),
        ("{_target_: torch.nn.Linear, out_features: many}", "parts.net.out_features: must be a whole number, got 'man"),
        ("{width: 3}", "parts.net: needs a _target_; choose an option such as parts.net=..., or write one"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_key(node: str, problem: str) -> None:
    cfg = given(f"+parts={{net: {node}}}")
    with pytest.raises(ConfigError) as caught:
        sweep.build(cfg.parts.net, in_features=2)
    assert str(caught.value).startswith(problem)


def test_what_is_not_allowed_is_refused_in_the_config_and_when_it_is_built() -> None:
    with pytest.raises(ConfigError, match=r"^parts.net._target_: 'os.system' is not an allowed target"):
        given("+parts={net: {_target_: os.system, command: ls}}")
    with pytest.raises(ConfigError, match=r"^net._target_: 'os.system' is not an allowed target"):
        sweep.build(OmegaConf.create({"net": {"_target_": "os.system"}}).net)
    text: Any = "torch.nn.Linear"
    with pytest.raises(ConfigError, match=r"^node: must be a node of the config, with a _target_; got str"):
        sweep.build(text)


def test_a_function_that_builds_its_parts_trains(tmp_path: Path) -> None:
    own = ("trainer=function", "trainer.call=functions.built", "model=linear", "optimizer=sgd", "optimizer.lr=0.3")
    from sweep.testing import TrialInMemory
    from sweep.trial.function import FunctionTraining

    trial = TrialInMemory(tmp_path)
    assert FunctionTraining(validate(compose(own)))(trial) == {"n": 3}
    assert trial.reports == {1: {"val/loss": 0.3}}
