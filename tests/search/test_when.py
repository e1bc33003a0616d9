"""sweep/search/when.py: keys that are searched only if a condition on other values holds."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.trial import TrialState
from spaces import proposals, ranges_of, space_of

from sweep import load_study, run_study
from sweep.search.initial_trials import initial_params
from sweep.search.samplers import draw, make_sampler, shuffled
from sweep.search.settings import StudySettings
from sweep.search.space import Space
from sweep.search.when import in_order
from sweep.study.identity import differences, identity
from sweep.utils.errors import ConfigError

FIXED = ("optimizer=sgd", "scheduler=constant", "trainer.batch_size=32")
CHAIN = (  # in the wrong order: each reads what follows it
    *("model.dropout=0.1,0.2", '+when.model.dropout="optimizer.momentum == 0.9"'),
    *("optimizer.momentum=0.5,0.9", '+when.optimizer.momentum="optimizer.lr > 0.05"'),
    "optimizer.lr=0.1,0.01",
)
POINTS = [  # of CHAIN: optimizer.lr, optimizer.momentum, model.dropout
    *[(0.1, 0.5), (0.1, 0.9, 0.1), (0.1, 0.9, 0.2), (0.01,)],
]
SAMPLERS = {
    "random": {"_target_": "optuna.samplers.RandomSampler"},
    "qmc": {"_target_": "optuna.samplers.QMCSampler"},
    "tpe": {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 4},
    "tpe of one param": {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 4, "multivariate": False},
}


@pytest.fixture(scope="module")
def chain() -> Space:
    return space_of(*FIXED, *CHAIN)


def test_a_grid_has_each_configuration_once(chain: Space) -> None:
    assert [tuple(configuration.params.values()) for configuration in chain.everything()] == POINTS
    assert list(ranges_of(chain)) == ["optimizer.lr", "optimizer.momentum", "model.dropout"]
    assert chain.has_at_most(4)
    assert not chain.has_at_most(3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_is_asked_only_for_keys_whose_condition_holds(sampler: str, chain: Space) -> None:
    points = [tuple(params.values()) for params in proposals(SAMPLERS[sampler], chain, list(range(16)))]
    assert set(points) == set(POINTS)


def test_a_condition_may_read_a_reference_and_be_one() -> None:
    more = ("+data.a=0.05", "+data.b=${optimizer.momentum}", '++when.model.dropout="data.b == 0.9"')
    space = space_of(*FIXED, *CHAIN, *more, '++when.optimizer.momentum="optimizer.lr > ${data.a}"')
    assert [tuple(configuration.params.values()) for configuration in space.everything()] == POINTS


def test_a_resolver_in_a_condition_reads_the_keys_that_are_its_arguments() -> None:
    conditions = {"b": "${oc.select:${a},0} > 1", "a": "${oc.env:HOME} == 'x' or max > 1", "max": "max(c, 1) > 1"}
    assert in_order(["a", "b", "c", "max"], conditions, {}) == ["c", "max", "a", "b"]


def test_a_condition_belongs_to_the_options_that_have_the_key() -> None:
    rule = '+when.optimizer.momentum="optimizer.lr > 0.05"'
    space = space_of("optimizer=sgd,adam", *FIXED[1:], "optimizer.momentum=0.5,0.9", "optimizer.lr=0.1,0.01", rule)
    found = [tuple(configuration.params.values()) for configuration in space.everything()]
    assert found == [
        *[("sgd", 0.1, 0.5), ("sgd", 0.1, 0.9), ("sgd", 0.01)],
        *[("adam", 0.1), ("adam", 0.01)],
    ]


def test_a_key_that_the_command_line_sets_needs_no_condition() -> None:
    space = space_of(*FIXED, *CHAIN[1:], "model.dropout=0.3")
    assert list(ranges_of(space)) == ["optimizer.lr", "optimizer.momentum"]
    without = space_of(*FIXED, *CHAIN, "++when.optimizer.momentum=null", "++when.model.dropout=null")
    assert len(list(without.everything())) == 8


def test_the_first_trials_have_no_key_that_is_not_searched(chain: Space) -> None:
    settings = StudySettings(enqueue=[{"optimizer.lr": 0.01}, {"optimizer.momentum": 0.5}])
    first = initial_params(settings, chain, {})
    assert first == [{"optimizer.lr": 0.1}, {"optimizer.lr": 0.01}, {"optimizer.momentum": 0.5}]
    order = [tuple(configuration.params.values()) for configuration in shuffled(chain, 0, first)]
    assert order[:2] == [(0.1, 0.5), (0.01,)]
    assert sorted(order) == sorted(POINTS)
    bad = StudySettings(enqueue=[{"optimizer.lr": 0.01, "optimizer.momentum": 0.5}])
    with pytest.raises(ConfigError, match=r"^hydra.sweeper.enqueue: optimizer.momentum is not searched in \{"):
        initial_params(bad, chain, {})


def test_other_params_are_drawn_such_that_an_enqueued_one_is_searched(chain: Space) -> None:
    study = optuna.create_study()
    trial = optuna.trial.create_trial(state=TrialState.WAITING)
    for number in range(16):
        sampler = make_sampler(SAMPLERS["random"], 0, number, chain)
        configuration = draw(study, trial, sampler, chain, {"optimizer.momentum": 0.5})
        assert configuration.params == {"optimizer.lr": 0.1, "optimizer.momentum": 0.5}


def test_incomplete_defaults_are_tried_first_without_what_is_not_searched_beside_them(chain: Space) -> None:
    first = shuffled(chain, 0, [{"optimizer.lr": 0.01, "model.dropout": 0.1}])[0]
    assert first.params == {"optimizer.lr": 0.01}


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ("++when.model.dropout='seed == 0'", 'when.model.dropout = "optimizer.momentum == 0.9", now "seed == 0"'),
        ("trainer.epochs=3", "trainer.epochs = "),
    ],
)
def test_a_condition_is_part_of_the_studys_identity(changed: str, difference: str, chain: Space) -> None:
    other = identity(StudySettings(), space_of(*FIXED, *CHAIN, changed))
    (found,) = differences(identity(StudySettings(), chain), other)
    assert found.startswith(difference)


def test_so_is_the_value_that_a_key_has_when_it_is_not_searched(chain: Space) -> None:
    facts = identity(StudySettings(), chain)
    assert facts["model.dropout"] == "0.0"
    assert "optimizer.lr" not in facts


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("model.dropout='seed >'", "cannot evaluate 'seed >': invalid syntax"),
        ("model.dropout='sead > 1'", "cannot evaluate 'sead > 1': the config has no 'sead'"),
        ("model.dropout='seed.bit_length() > 1'", "cannot evaluate 'seed.bit_length() > 1': it may call only"),
        ("model.dropout='model.dropout > 0'", "depends on itself: model.dropout reads model.dropout; change one of"),
        ("model.dropuot='seed > 1'", "is the condition of a key that is not searched; give the key a range"),
        ("seed='model.dropout > 1'", "is the condition of a key that is not searched; give the key a range"),
        ("data='seed > 1'", "is a group; a condition is for a key that has a range of values"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(given: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space_of(*FIXED, *CHAIN, f"++when.{given}").combinations()
    assert str(caught.value).startswith(f"when.{given.partition('=')[0]}: {message}")
    assert "\n" not in str(caught.value)


def test_conditions_that_wait_for_each_other_are_refused() -> None:
    circle = "model.dropout reads optimizer.momentum reads optimizer.lr reads model.dropout"
    with pytest.raises(ConfigError, match=f"^when.model.dropout: depends on itself: {circle}; change one of"):
        space_of(*FIXED, *CHAIN, "+when.optimizer.lr='model.dropout > 0'").combinations()


@pytest.mark.process
def test_a_packed_study_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = ["experiment=debug", "tracking=off", "trainer.compile=false", *FIXED[:2], *CHAIN, "trainer.batch_size=16"]
    settings: dict[str, Any] = {"study_name": "s", "sampler": "grid", "pruner": "none", "pack": 4}
    run_study(own, n_trials=2, **settings)
    study = run_study(own, **settings)
    assert [tuple(trial.params.values()) for trial in study.results] == POINTS
    configs = [OmegaConf.load(trial.folder / "config.yaml") for trial in study.results]
    assert [(c.optimizer.momentum, c.model.dropout) for c in configs] == [(0.5, 0), (0.9, 0.1), (0.9, 0.2), (0, 0)]
    assert study.trials()["params.model.dropout"].isna().tolist() == [True, False, False, True]
    shown = study._repr_html_()
    assert all(f"<tr><td>{trial.number}</td><td>{trial.value:.6g}</td>" in shown for trial in study.results)
    with pytest.raises(ConfigError, match=r"when\.model\.dropout = "):
        run_study([*own, "++when.model.dropout='seed == 0'"], **settings)
    assert len(load_study("s").results) == 4
