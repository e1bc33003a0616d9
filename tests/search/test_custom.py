"""Another application's search space: draws as the stock sweeper's, and a function that chooses further values."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode
from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
from optuna.distributions import FloatDistribution

from sweep.config.schema import register_schema
from sweep.search.making import make_space
from sweep.search.samplers import draw, make_sampler
from sweep.search.settings import RANDOM_SAMPLER
from sweep.search.space import Space
from sweep.trial.application import Application
from sweep.utils.errors import ConfigError


def further(cfg: Any, trial: Any) -> None:
    if trial.params["x"] > cfg.limit:
        trial.suggest_float("+z", trial.params["x"], 9.0)
    trial.suggest_int("n", 2, 8)


def mistaken(cfg: Any, trial: Any) -> None:
    trial.suggest_float("n", 2, cfg.nowhere)


def space(folder: Path, *arguments: str, custom: str | None = None) -> Space:
    register_schema()
    (folder / "main.yaml").write_text("x: 1.0\ny: 1.0\nn: 1\nlimit: 5.0\ntrainer: {batch_size: x}\nsearch: elsewhere\n")
    with initialize_config_dir(str(folder), job_name="main"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("main", [*arguments], RunMode.MULTIRUN)
        application = Application(
            **{"name": "main", "script": "main.py", "context": HydraContext(loader, Callbacks()), "master": master},
            **{"task": lambda cfg: None, "settings": {}, "returns": ["objective"], "custom_search_space": custom},
        )
        made = make_space(loader, master, arguments, application=application)
        made.combinations()
    return made


def drawn(made: Space, number: int, seed: int) -> dict[str, Any]:
    study = optuna.create_study()
    sampler = make_sampler({"_target_": RANDOM_SAMPLER, "seed": seed}, seed, number, made)
    return draw(study, optuna.trial.create_trial(value=0.0), sampler, made, {}).params


def test_a_seeded_random_sampler_draws_what_the_stock_sweeper_draws(tmp_path: Path) -> None:
    arguments = ["y=tag(log, interval(1, 100))", "n=range(1, 9)", "x=interval(0.0, 3.0)"]
    made = space(tmp_path, *arguments)
    stock = optuna.create_study(sampler=optuna.samplers.RandomSampler(4))
    ranges, _, _ = create_params_from_overrides(arguments)
    expected = [stock.ask(ranges).params for _ in range(5)]
    assert [drawn(made, number, 4) for number in (4, 0, 2)] == [expected[number] for number in (4, 0, 2)]


def test_a_function_chooses_further_values(tmp_path: Path) -> None:
    made = space(tmp_path, "x=interval(0.0, 9.0)", custom=f"{__name__}.further")
    values = {"x": 7.0, "+z": 8.0, "n": 3}
    found = made.configuration(lambda name, distribution: values[name])
    assert (found.params, found.values) == (values, {"x": 7.0, "z": 8.0, "n": 3})
    assert made.distributions(found)["+z"] == FloatDistribution(7.0, 9.0)
    overrides = made.composer.job_overrides(found.groups, found.values)
    assert overrides == ([], ["x=7.0", "+z=8.0", "n=3"])
    assert "z" not in made.configuration(lambda name, distribution: {"x": 1.0, "n": 2}[name]).values


def test_what_it_chooses_cannot_be_set_too(tmp_path: Path) -> None:
    made = space(tmp_path, "x=interval(0.0, 9.0)", "n=3", custom=f"{__name__}.further")
    with pytest.raises(ConfigError, match=r"^n: is set on the command line, but hydra.sweeper.custom_search_space"):
        made.configuration(lambda name, distribution: {"x": 1.0, "n": 2}[name])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nowhere.f", "cannot load 'nowhere.f': "),
        ("json.dumps", r"json.dumps\(cfg, trial\) raises TypeError: dumps\(\) takes 1 positional argument but 2 were"),
        (f"{__name__}.mistaken", r"test_custom.mistaken\(cfg, trial\) raises ConfigAttributeError: Key 'nowhere' is"),
    ],
)
def test_a_mistake_in_the_function_names_its_setting(function: str, message: str, tmp_path: Path) -> None:
    made = space(tmp_path, "x=interval(0.0, 9.0)", custom=function)
    with pytest.raises(ConfigError, match=f"^hydra.sweeper.custom_search_space: {message}"):
        made.configuration(lambda name, distribution: 1.0)
