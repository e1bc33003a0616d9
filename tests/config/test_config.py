import math
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from sweep import ConfigError, compose
from sweep.config.nodes import Split, Tracking, Trainer
from sweep.config.schema import Config, own_defaults, validate

SCHEDULER = {"_target_": "sweep.schedules.cyclic", "base_lr": 1e-4, "max_lr": "${lr_bounds.max_lr}", "cycle_epochs": 5}


def config(**changes: Any) -> DictConfig:
    """A config that `validate` accepts, but for `changes`."""
    cfg = OmegaConf.merge(
        OmegaConf.structured(Config),
        {
            "data": {"_target_": "sweep.data.noisy_sine.noisy_sine"},
            "model": {"_target_": "sweep.models.MLP", "widths": [8]},
            "optimizer": {"_target_": "torch.optim.Adam", "lr": 1e-3},
            "scheduler": SCHEDULER,
        },
        changes,
    )
    assert isinstance(cfg, DictConfig)
    return cfg


def refusal(cfg: DictConfig) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        validate(cfg)
    assert str(caught.value).startswith(f"{caught.value.key}: ")
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_valid_config_becomes_plain_values_with_interpolations_resolved():
    valid = validate(config(lr_bounds={"max_lr": 0.5}))
    assert valid.trainer == Trainer()
    assert valid.scheduler == {**SCHEDULER, "max_lr": 0.5}
    assert type(valid.scheduler) is dict
    assert type(valid.model["widths"]) is list


@pytest.mark.parametrize(
    ("node", "name", "value", "says"),
    [
        (Trainer, "epochs", 0, ">= 1"),
        (Trainer, "batch_size", 0, ">= 1"),
        (Trainer, "loss", "mae", "auto, mse, cross_entropy"),
        (Trainer, "precision", "float16", "float32, bf16"),
        (Trainer, "clip_norm", 0.0, "> 0 or null"),
        (Trainer, "clip_norm", math.nan, "> 0 or null"),
        (Trainer, "clip_norm", math.inf, "> 0 or null"),
        (Trainer, "patience", 0, ">= 1 epoch or null"),
        (Trainer, "min_delta", -0.1, ">= 0"),
        (Trainer, "min_delta", math.nan, ">= 0"),
        (Trainer, "checkpoint_interval_s", -1.0, ">= 0"),
        (Trainer, "seed", -1, ">= 0"),
        (Trainer, "threads", 0, "between 1 and"),
        (Split, "val", 0.0, "between 0 and 1"),
        (Split, "val", 1.0, "between 0 and 1"),
        (Split, "val", math.nan, "between 0 and 1"),
        (Split, "val", 0.9, "split.test 0.15"),
        (Split, "test", 0.0, "between 0 and 1"),
        (Split, "seed", -1, ">= 0"),
        (Tracking, "step_points", -1, ">= 0"),
        (Tracking, "close_timeout_s", -1.0, "between 0 and"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(node: type, name: str, value: Any, says: str):
    key = f"{node.__name__.lower()}.{name}"
    error = refusal(config(**{node.__name__.lower(): {name: value}}))
    assert error.key == key
    assert says in error.problem
    assert error.exit_status == 2


def test_the_smallest_useful_values_are_accepted():
    Trainer(epochs=1, batch_size=1, clip_norm=1e-9, patience=1, min_delta=0.0, checkpoint_interval_s=0.0, threads=1)
    Split(val=0.01, test=0.98)
    Tracking(step_points=0, close_timeout_s=0.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", -1), ("experiment_name", ""), ("experiment_name", "  "), ("output_dir", "")],
)
def test_a_bad_root_value_is_refused_by_its_key(key: str, value: Any):
    assert refusal(config(**{key: value})).key == key


def test_a_negative_seed_is_told_as_the_seed_that_was_set_not_as_its_copy():
    assert refusal(config(seed=-1, trainer={"seed": "${seed}"})).key == "seed"


@pytest.mark.parametrize("value", [0, 0.0, -1e-3, math.inf, math.nan, "abc", True, [0.1], {"a": 1}])
@pytest.mark.parametrize("key", ["optimizer.lr", "scheduler.base_lr", "scheduler.max_lr"])
def test_a_learning_rate_must_be_a_finite_number_above_zero(key: str, value: Any):
    node, name = key.split(".")
    assert refusal(config(**{node: {name: value}})).key == key


@pytest.mark.parametrize("value", [-1, -1e-3, math.inf, math.nan])
def test_the_learning_rate_a_schedule_ends_with_must_not_be_negative(value: Any):
    assert refusal(config(scheduler={"min_lr": value})).key == "scheduler.min_lr"
    validate(config(scheduler={"min_lr": 0.0}))


@pytest.mark.parametrize("base_lr", [1e-2, 1e-1])
def test_a_lower_bound_not_below_the_upper_one_is_refused_with_the_fix(base_lr: float):
    error = refusal(config(scheduler={"base_lr": base_lr}))
    assert error.key == "scheduler.base_lr"
    assert f"is {base_lr:g}, not below scheduler.max_lr = 0.01" in error.problem
    assert "lower it, or raise scheduler.max_lr" in error.problem


def test_the_bounds_may_come_from_elsewhere_in_the_config():
    assert refusal(config(scheduler={"base_lr": 1e-2}, lr_bounds={"max_lr": 1e-3})).key == "scheduler.base_lr"


def test_a_scheduler_is_stepped_by_step_or_epoch_only():
    error = refusal(config(scheduler={"interval": "batch"}))
    assert (error.key, error.problem) == ("scheduler.interval", "'batch' is unknown; choose one of step, epoch")


@pytest.mark.parametrize("node", ["data", "model", "optimizer", "scheduler"])
@pytest.mark.parametrize("value", [None, "adam", 3, {}, {"_target_": None}, {"_target_": 3}])
def test_a_component_needs_a_target(node: str, value: Any):
    cfg = config()
    cfg[node] = value
    error = refusal(cfg)
    assert error.key == node
    assert f"such as {node}=" in error.problem


def test_a_component_that_is_left_out_is_named():
    cfg = config()
    cfg.optimizer = "???"
    assert refusal(cfg).key == "optimizer"


def test_a_required_argument_left_open_is_named():
    assert refusal(config(data={"path": "???"})).key == "data.path"


def test_an_interpolation_of_nothing_names_the_key_that_holds_it():
    error = refusal(config(model={"dropout": "${nowhere}"}))
    assert error.key == "model.dropout"
    assert "nowhere" in error.problem


def test_a_value_of_the_wrong_type_is_refused_by_its_key():
    assert refusal(config(scheduler={"name": "abc"}, trainer={"epochs": "${scheduler.name}"})).key == "trainer.epochs"


@pytest.mark.parametrize("key", ["trainer.epohcs", "split.tset", "tracking.url", "lr_bounds.lr", "sede"])
def test_a_key_that_nothing_reads_is_refused_even_when_added_by_force(key: str):
    cfg = config()
    OmegaConf.update(cfg, key, 3, force_add=True)
    assert refusal(cfg).key == key


def test_a_target_that_is_not_allowed_is_refused_in_every_component():
    for key in ("data", "model", "optimizer", "scheduler"):
        assert refusal(config(**{key: {"_target_": "os.system"}})).key == f"{key}._target_"


def test_a_target_deep_inside_a_component_is_checked_too():
    inner = {"layers": [{"_target_": "torch.nn.Linear"}, {"_target_": "os.system"}]}
    assert refusal(config(model=inner)).key == "model.layers.1._target_"
    assert (
        refusal(config(optimizer={"params": {"of": {"_target_": "os.system"}}})).key == "optimizer.params.of._target_"
    )


def test_what_a_record_without_a_key_had_is_the_default_of_today():
    """Defaults stand twice: in conf/ for users, in the schema for records of earlier versions."""
    cfg = compose()
    for key, default in own_defaults().items():
        if "." in key and not key.startswith("optimizer."):
            assert OmegaConf.select(cfg, key) == default, key
