import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError

from sweep import ConfigError, compose
from sweep.config.composition import composing
from sweep.config.options import CONF_DIR
from sweep.config.schema import validate

GROUPS = sorted(path.name for path in CONF_DIR.iterdir() if path.is_dir() and path.name != "hydra")
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF_DIR / group).glob("*.yaml"))]
REQUIRED = {
    ("data", "table"): ["data.path=mine.csv", "data.target=y"],
    ("data", "text"): ["data.path=mine.txt"],
    ("data", "image_folder"): ["data.path=mine"],
    ("experiment", "text_transformer"): ["data.path=mine.txt"],
    ("trainer", "function"): ["trainer.call=torch.optim.train"],
}


@pytest.fixture(autouse=True)
def _no_hydra_left_over() -> None:
    assert not GlobalHydra.instance().is_initialized()


def refusal(*overrides: str, config_dir: Path | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        compose(overrides, config_dir=None if config_dir is None else str(config_dir))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2
    return caught.value


@functools.cache
def composed(*overrides: str) -> DictConfig:
    """For tests that only read it."""
    return compose(overrides)


def own_option(folder: Path, group: str, name: str, text: str) -> Path:
    """A config folder of a user's own, with one option in it."""
    (folder / group).mkdir(parents=True, exist_ok=True)
    (folder / group / f"{name}.yaml").write_text(text)
    return folder


# What is composed


def test_the_groups_hold_what_the_readme_promises():
    promised = {
        "optimizer": "sgd momentum nesterov adam adamw rmsprop adagrad nadam radam",
        "scheduler": "constant cyclic cyclic_triangular2 cyclic_exp_range onecycle cosine warmup_cosine "
        "cosine_restarts step exponential plateau",
        "model": "mlp linear convnet resnet transformer",
        "data": "noisy_sine digits diabetes breast_cancer table text image_folder",
        "tracking": "mlflow off",
        "experiment": "seed_study debug digits_resnet text_transformer",
    }
    assert {(group, option) for group, options in promised.items() for option in options.split()} <= set(OPTIONS)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_to_a_valid_config_that_knows_its_name(group: str, option: str):
    config = validate(composed(f"{group}={option}", *REQUIRED.get((group, option), [])).copy())
    assert config.choices[group] == option


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "optimizer"])
def test_each_optimizer_brings_learning_rates_for_the_schedulers(option: str):
    cyclic = composed(f"optimizer={option}")
    assert cyclic.scheduler.base_lr == cyclic.lr_bounds.base_lr < cyclic.scheduler.max_lr == cyclic.lr_bounds.max_lr
    assert cyclic.lr_bounds.base_lr <= cyclic.optimizer.lr <= cyclic.lr_bounds.max_lr


def test_the_defaults_are_the_original_study():
    default, study = composed(), composed("experiment=seed_study")
    groups = ("data", "model", "optimizer", "scheduler")
    assert {group: default.choices[group] for group in groups} == {
        "data": "noisy_sine",
        "model": "mlp",
        "optimizer": "adam",
        "scheduler": "cyclic",
    }
    assert all(default[group] == study[group] for group in groups)
    assert (study.trainer.loss, study.experiment_name) == ("mse", "seed_study")


def test_the_environment_names_the_mlflow_experiment_where_nothing_else_does(monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of my shell")
    assert validate(compose()).experiment_name == "of my shell"
    assert validate(compose(["experiment_name=given"])).experiment_name == "given"
    assert validate(compose(["experiment=seed_study"])).experiment_name == "seed_study"


def test_debug_is_tiny():
    debug = composed("experiment=debug")
    assert (debug.trainer.epochs, debug.split.max_samples) == (2, 64)


def test_an_override_beats_an_experiment():
    cfg = compose(["experiment=seed_study", "optimizer=sgd", "trainer.loss=auto"])
    assert (cfg.choices.optimizer, cfg.trainer.loss, cfg.optimizer["_target_"]) == ("sgd", "auto", "torch.optim.SGD")


def test_the_trainers_seed_is_the_runs_unless_it_has_its_own():
    assert compose(["seed=7"]).trainer.seed == 7
    assert compose(["seed=7", "trainer.seed=8"]).trainer.seed == 8


def test_a_composed_config_has_neither_hydras_part_nor_room_for_typing_errors():
    cfg = compose()
    assert "hydra" not in cfg
    with pytest.raises(ConfigAttributeError):
        cfg.trainr = 1
    with pytest.raises(ConfigAttributeError):
        cfg.optimizer.rl = 1


def test_any_other_target_needs_no_file_of_its_own():
    node = "{_target_: torch.optim.Adamax, lr: 0.02}"
    assert compose([f"optimizer={node}", "~optimizer.betas"]).optimizer["_target_"] == "torch.optim.Adamax"


# Hydra's global state


def test_composing_leaves_no_hydra_behind():
    compose()
    assert not GlobalHydra.instance().is_initialized()
    refusal("optimizer=bogus")
    assert not GlobalHydra.instance().is_initialized()


def test_composing_works_inside_a_users_own_hydra(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    with hydra.initialize_config_dir(str(tmp_path)):
        assert compose(["optimizer=sgd"]).choices.optimizer == "sgd"
        refusal("optimizer=bogus")
        assert GlobalHydra.instance().is_initialized()
        assert hydra.compose("mine", ["a=2"]) == {"a": 2}


def test_each_composed_config_is_its_own():
    first = compose()
    first.trainer.epochs = 1
    assert compose().trainer.epochs > 1


# A user's own options


@pytest.mark.parametrize("name", ["my conf", "it's", 'lr=1,"2" [x]'])
def test_a_users_own_folder_of_options_may_have_any_name(tmp_path: Path, name: str):
    own = own_option(tmp_path / name, "model", "mine", "_target_: mypkg.Net\nhidden: 3\n")
    cfg = compose(["model=mine", "model.hidden=4"], config_dir=str(own))
    assert cfg.model == {"_target_": "mypkg.Net", "hidden": 4}
    assert cfg.choices.model == "mine"


def test_a_folder_of_options_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own_option(tmp_path / "own", "optimizer", "mine", "_target_: torch.optim.Adamax\nlr: 0.1\n")
    monkeypatch.chdir(tmp_path)
    assert compose(["optimizer=mine"], config_dir="own").optimizer.lr == 0.1
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compose(["optimizer=mine"], config_dir="~/own").optimizer.lr == 0.1


def test_own_options_are_gone_without_their_folder(tmp_path: Path):
    own = own_option(tmp_path, "model", "mine", "_target_: mypkg.Net\n")
    assert "convnet, linear, mine, mlp, resnet, transformer" in refusal("model=mien", config_dir=own).problem
    assert refusal("model=mine").problem == "no option 'mine'; choose one of: convnet, linear, mlp, resnet, transformer"


def test_a_folder_of_options_that_is_not_there_is_told(tmp_path: Path):
    assert str(refusal(config_dir=tmp_path / "nope")) == f"config_dir: no folder '{tmp_path}/nope'"


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("# @package _global_\ntrainer:\n  epohcs: 3\n", "trainer.epohcs", "did you mean 'epochs'?"),
        ("# @package _global_\ntrainer:\n  epochs: many\n", "trainer.epochs", "'many'"),
        ("# @package _global_\ndefaults:\n  - override /model: mpl\n", "model", "choose one of: convnet, "),
        ("# @package _global_\ndefaults:\n  - override /modle: mlp\n", "experiment/mine", "'/modle: mlp'"),
        (
            "# @package _global_\ntrainer: [1]\n",
            "experiment",
            "not a subclass of Trainer. value: [1] (in experiment/mine",
        ),
        ("# @package _global_\nfoo: 1\n", "foo", "is not a key of the config; choose one of: seed, "),
        ("# @package _global_\ndefaults:\n  - /model: mlp\n  - /task: binary\n", "task", "- override /task: binary"),
        ("# @package _global_\ndefaults:\n  - model: linear\n", "experiment/model", "- override /model: linear"),
        ("trainer: [\n", "experiment", 'experiment/mine.yaml", line 2'),
        ("# @package _global_\ndefaults: [{/experiment: mine}]\n", "defaults", "an option includes itself"),
    ],
)
def test_a_mistake_in_an_own_file_is_told_in_one_line(tmp_path: Path, text: str, key: str, says: str):
    error = refusal("experiment=mine", config_dir=own_option(tmp_path, "experiment", "mine", text))
    assert error.key == key
    assert says in error.problem


# Mistakes on the command line


@pytest.mark.parametrize(
    ("override", "key", "says"),
    [
        ("optimizer=adma", "optimizer", "no option 'adma'; choose one of: adagrad, adam, adamw, "),
        ("optimizer=null", "optimizer", "no option 'null'; choose one of: adagrad, "),
        ("scheduler=3", "scheduler", "no option '3'; choose one of: constant, "),
        ("model=", "model", "choose one of: convnet, linear, mlp, resnet, transformer"),
        ("optimiser=adam", "optimiser", "choose one of: seed, output_dir, "),
        ("trainer.epohcs=3", "trainer.epohcs", "choose one of: epochs, batch_size, "),
        ("trainr.epochs=3", "trainr", "trainer"),
        ("optimizer.rl=0.1", "optimizer.rl", "write +optimizer.rl=..."),
        ("optimizer.lrr=0.1", "optimizer.lrr", "Did you mean: 'lr'?"),
        ("+seed=3", "seed", "already"),
        ("~nothing", "nothing", "does not exist"),
        ("~trainer.epochs", "trainer.epochs", "cannot be removed; leave out ~trainer.epochs"),
        ("trainer.epochs=many", "trainer.epochs", "'many'"),
        ("trainer.epochs=1.5", "trainer.epochs", "'1.5'"),
        ("trainer.compile=perhaps", "trainer.compile", "'perhaps'"),
        ("split.val=half", "split.val", "'half'"),
        ("seed=null", "seed", "not Optional"),
        ("optimizer.lr=1,2", "optimizer.lr", "add -m to run each, or write a list as [a,b]"),
        ("optimizer=sgd,adam", "optimizer", "add -m to run each"),
        ("seed=range(1,3)", "seed", "--multirun"),
        (
            "optimizer.groups={'*.bias': {weight_decay: 0}}",
            "optimizer.groups",
            "the keys of a dict have no quotes; write {*.bias: ...}",
        ),
        ("optimizer=[adam", "optimizer", "cannot read 'optimizer=[adam': it is wrong or ends too early at '[adam'"),
        ("optimizer", "optimizer", "it has no value; write optimizer=..."),
        ("+optimizer=sgd", "optimizer", "has an option already, and 'sgd' would be a second one; write optimizer=sgd"),
        ("++optimizer=sgd", "optimizer", "has an option already; write optimizer=... without the +"),
        ("search={a: }", "search", "at '{a: }'; write a list as [a,b], a dict as {a:1}"),
        ("data.noise='1", "data.noise", "special character stands alone; write a list as"),
        ("optimizer.lr=choice()", "optimizer.lr", "empty choice is not legal; write for example choice(1,2)"),
        ("model.widths=[1,2", "model.widths", "cannot read 'model.widths=[1,2'"),
    ],
)
def test_a_mistake_names_its_key_and_the_way_out(override: str, key: str, says: str):
    error = refusal(override)
    assert error.key == key
    assert says in error.problem


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("~scheduler", "scheduler: needs a _target_; choose an option such as scheduler=constant"),
        ("~data", "data: needs a _target_; choose an option such as data=breast_cancer"),
    ],
)
def test_a_part_that_is_removed_is_told_as_missing(override: str, says: str):
    with pytest.raises(ConfigError) as caught, composing([override]):
        validate(compose([override]))
    assert str(caught.value) == says


# The command line


def command(cwd: Path, *arguments: str) -> "tuple[int, str, str, set[str]]":
    """Exit status, stdout, the last line on stderr, and every module that was loaded on the way."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sweep.run", *arguments],
        cwd=cwd,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = done.stderr.splitlines()
    modules = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    said = [line for line in lines if not line.startswith("import time:")]
    return done.returncode, done.stdout, "".join(said[-1:]), modules


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--cfg", "job"], 0),
        (["--help"], 0),
        (["optimizer=bogus"], 2),
        (["scheduler.base_lr=1"], 2),
    ],
    ids=["--cfg", "--help", "option", "value"],
)
def test_what_needs_no_training_loads_neither_torch_nor_mlflow(tmp_path: Path, arguments: list[str], status: int):
    returncode, _, said, modules = command(tmp_path, *arguments)
    assert returncode == status, said
    assert {"hydra", "sweep.config.schema"} <= modules
    assert not {"torch", "mlflow", "optuna", "pandas", "sklearn"} & modules
    assert arguments == ["scheduler.base_lr=1"] or "numpy" not in modules  # the trial's checks come with its data


@pytest.mark.process
def test_compose_gives_what_the_command_line_uses(tmp_path: Path):
    overrides = ["optimizer=sgd", "scheduler=onecycle", "seed=3", "model.widths=[8]", "experiment=debug"]
    _, printed, _, _ = command(tmp_path, "--cfg", "job", *overrides)
    theirs: Any = OmegaConf.to_container(OmegaConf.create(printed), resolve=True)
    ours: Any = OmegaConf.to_container(compose(overrides), resolve=True)
    filled_in = {key: ours[key] for key in ("choices", "composed")}
    assert {**theirs, **filled_in, "overrides": overrides} == ours
