"""A config of a training function: what it may leave out, and what it may add."""

from functools import partial
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sweep import ConfigError, compose
from sweep.config.function_node import given_call
from sweep.config.schema import Config, validate
from sweep.tracking.description import hyperparameters, run_name
from sweep.tracking.folders import RunFolder
from sweep.tracking.run_recorder import stored_text
from sweep.tracking.stored_run import config_of
from sweep.utils.checked_file import write_checked

pytestmark = pytest.mark.targets("mypkg.*")

FUNCTION = ("trainer=function", "trainer.call=mypkg.train")


def valid(*overrides: str, config_dir: Path | None = None) -> Config:
    return validate(compose([*FUNCTION, *overrides], config_dir=config_dir))


def test_no_option_of_a_group_is_needed_and_each_may_be_chosen() -> None:
    config = valid()
    assert [config.data, config.model, config.optimizer, config.scheduler] == [None] * 4
    assert (config.trainer.epochs, config.has_split, config.search) == (None, False, {})
    chosen = valid("model=mlp", "optimizer=sgd", "split=stratified", "scheduler=constant", "data=digits")
    assert (chosen.model["_target_"], chosen.split.kind) == ("sweep.models.MLP", "stratified")
    assert [*chosen.search] == ["optimizer.lr"]


def test_keys_of_the_users_own_come_from_the_command_line_and_from_files(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "gan.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /trainer: function\n\ntrainer: {call: mypkg.train}\n"
        "g: {lr: 0.1, betas: [0.5, 0.9]}\nsearch: {g.lr: 'tag(log, interval(0.01, 1))'}\n"
    )
    config = validate(compose(["experiment=gan", "g.lr=0.2", "+d_lr=0.3"], config_dir=tmp_path))
    assert config.own == {"g": {"lr": 0.2, "betas": [0.5, 0.9]}, "d_lr": 0.3}
    params = hyperparameters(config)
    assert (params["g.lr"], params["g.betas"], params["d_lr"]) == (0.2, [0.5, 0.9], 0.3)
    assert [key for key in params if key.startswith(("split", "data", "model"))] == []
    assert run_name(config) == "mypkg.train-s0"


def test_they_are_stored_at_the_root_and_read_again(tmp_path: Path) -> None:
    config, run = valid("+g.lr=0.2", "model=mlp", "+text='\\${nope}'"), RunFolder(tmp_path)
    write_checked(run.config, stored_text(config))
    assert OmegaConf.load(run.config).g.lr == 0.2
    assert config_of(run, "run") == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["g_lr=0.1"], "g_lr: is not a key of the config; choose one of: seed, "),
        (["n_trials=40"], "n_trials: is not a key of the config; if you mean the study's setting, write hydra.sweep"),
        (["sampler=tpe"], "sampler: is not a key of the config; if you mean the study's setting, write hydra/sweeper/"),
        (["tracking.urii=x"], "tracking.urii: is not a key of the config; choose one of: mlflow, uri, "),
        (["+x=1", "xx=2"], "xx: "),
        (["trainer.epohcs=3"], "trainer.epohcs: "),
        (["+trainer.width=3"], "trainer.width: is not a key of the config; choose one of: epochs, batch_size, "),
        (["+a-b=1"], "a-b: cannot be the name of a key; use letters, digits and _, and begin with a letter"),
        (["split.val=0.2"], "split: is set, but has no option, so your function would not get it; add split=random"),
        (["optimizer.freeze=[a]"], "optimizer: needs a _target_; choose an option such as optimizer=adagrad"),
        (["trainer.call=''"], "trainer.call: is empty; write the dotted path of your function, such as mypkg.train"),
        (["trainer.direction=up"], "trainer.direction: 'up' is unknown; choose one of minimize, maximize"),
        (["trainer.epochs=0"], "trainer.epochs: must be >= 1, got 0"),
        (["trainer=default"], "trainer.call: is for trainer=function, but trainer is default; choose trainer="),
    ],
)  # fmt: skip
def test_a_mistake_is_told(overrides: list[str], message: str) -> None:
    arguments = [o for o in FUNCTION if o != "trainer=function" or "trainer=default" not in overrides]
    with pytest.raises(ConfigError) as caught:
        validate(compose([*arguments, *overrides]))
    assert str(caught.value).startswith(message)


def test_without_a_function_nothing_may_be_left_out_or_added() -> None:
    for overrides, message in [
        (["+x=1"], "x: is not a key of the config; choose one of: seed, "),
        (["~model"], "model: needs a _target_; choose an option such as model=convnet"),
        (["trainer.direction=maximize"], "trainer.direction: is for a training function; a task declares the goals"),
    ]:
        with pytest.raises(ConfigError) as caught:
            validate(compose(overrides))
        assert str(caught.value).startswith(message)


class Trainer:
    """A training function that is an object with an attribute `func`, as a functools.partial has."""

    func = None

    def __call__(self, cfg: object, trial: object) -> None: ...


def test_a_function_given_as_an_object_is_named_by_its_class_or_its_own_name() -> None:
    functions = (Trainer(), partial(Trainer()), partial(Trainer), valid)
    names = [given_call(function) for function in functions]
    own = f"given:{__name__}."
    assert names == [f"{own}Trainer"] * 3 + [f"{own}valid"]
