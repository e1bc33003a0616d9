"""sweep/search/samplers.py: what a trial tries depends on the study's seed and the trial's number alone."""

from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
from spaces import proposals, space_of

from sweep.search.initial_trials import initial_params
from sweep.search.samplers import QuasiRandom, draw, make_sampler, shuffled
from sweep.search.settings import StudySettings, sampler_node
from sweep.search.space import Space
from sweep.study.planning import make_plan
from sweep.tracking.folders import StudyFolder
from sweep.utils.errors import ConfigError

optuna.logging.set_verbosity(optuna.logging.ERROR)
RANDOM = {"_target_": "optuna.samplers.RandomSampler"}
QMC = {"_target_": "optuna.samplers.QMCSampler"}
TPE = {"_target_": "optuna.samplers.TPESampler"}
CMAES = {"_target_": "optuna.samplers.CmaEsSampler", "warn_independent_sampling": False}
GP = {"_target_": "optuna.samplers.GPSampler", "n_startup_trials": 2}
NSGAII = {"_target_": "hydra_plugins.hydra_optuna_sweeper._impl.create_nsgaii_sampler", "population_size": 3}


@pytest.fixture(scope="module")
def space() -> Space:
    return space_of()


@pytest.fixture(scope="module")
def conditional() -> Space:
    return space_of("optimizer=sgd,adam", "scheduler=cyclic,constant")


@pytest.mark.parametrize("node", [RANDOM, QMC, QMC | {"qmc_type": "halton", "scramble": True}])
@pytest.mark.parametrize("kind", ["space", "conditional"])
def test_a_resumed_study_proposes_what_an_uninterrupted_one_would_and_nothing_twice(node, kind, request):
    space = request.getfixturevalue(kind)
    whole = proposals(node, space, list(range(12)))
    resumed = (
        proposals(node, space, [0, 1, 2]) + proposals(node, space, [3, 4, 5, 6, 7, 8]) + proposals(node, space, [11])
    )
    assert resumed == [*whole[:9], whole[11]]
    assert len({tuple(p.items()) for p in whole}) == 12


@pytest.mark.parametrize("node", [RANDOM, TPE, QMC | {"scramble": True}])
def test_another_seed_is_another_study(node, space):
    assert proposals(node, space, [0, 1]) != proposals(node, space, [0, 1], seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("node", [TPE, CMAES, GP, NSGAII])
def test_samplers_that_learn_go_on_from_what_the_storage_has(node, space, recwarn):
    numbers = list(range(14 if node is TPE else 6))
    assert proposals(node, space, numbers) == proposals(node, space, numbers)


def test_a_point_stays_what_an_earlier_attempt_stored_of_it(space):
    study = optuna.create_study()
    trial_id = study._storage.create_new_trial(study._study_id)
    distribution = dict(space.ranges({}).values())["scheduler.max_lr"]
    study._storage.set_trial_param(trial_id, "scheduler.max_lr", 0.05, distribution)
    for node in (RANDOM, QMC, TPE):
        configuration = draw(
            study,
            study._storage.get_trial(trial_id),
            make_sampler(node, 0, 0, space),
            space,
            {"trainer.batch_size": 16},
        )
        assert configuration.values["scheduler.max_lr"] == 0.05
        assert configuration.values["trainer.batch_size"] == 16


def test_a_condition_is_met_by_every_proposal():
    space = space_of("optimizer=sgd", "+where.close='scheduler.max_lr < 3 * scheduler.base_lr'")
    for node in (RANDOM, TPE, QMC):
        for params in proposals(node, space, list(range(8))):
            assert params["scheduler.base_lr"] < params["scheduler.max_lr"] < 3 * params["scheduler.base_lr"]


@pytest.mark.parametrize(
    "distribution",
    [
        FloatDistribution(-1.0, 3.0),
        FloatDistribution(0.001, 10.0, log=True),
        FloatDistribution(0.0, 1.0, step=0.25),
        IntDistribution(1, 7),
        IntDistribution(2, 20, step=3),
        IntDistribution(1, 100, log=True),
        CategoricalDistribution(["a", "b", None]),
    ],
)
def test_quasi_random_points_cover_a_range_and_stay_inside(distribution):
    study = optuna.create_study()
    trial = optuna.create_trial(value=0.0)
    values = []
    for number in range(64):
        sampler = QuasiRandom(number, seed=0)
        sampler.sample_relative(study, trial, {})
        values.append(sampler.sample_independent(study, trial, "x", distribution))
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in values)
    if isinstance(distribution, CategoricalDistribution):
        assert set(values) == set(distribution.choices)
    elif distribution.step is not None and not distribution.log:
        n = round((distribution.high - distribution.low) / distribution.step) + 1
        assert len(set(values)) == n
    else:
        assert len(set(values)) >= 14  # the logarithm crowds small integers


def test_optunas_defaults_hold_where_the_plug_ins_config_says_otherwise():
    configured = {**TPE, "multivariate": False, "constant_liar": False, "n_startup_trials": 5, "seed": None}
    assert sampler_node(configured, []) == {**TPE, "n_startup_trials": 5}
    named = ["hydra.sweeper.sampler.multivariate", "hydra/launcher"]
    assert sampler_node(configured, named) == {**TPE, "multivariate": False, "n_startup_trials": 5}


@pytest.mark.parametrize(
    ("node", "key"),
    [
        (TPE | {"foo": 1}, "hydra.sweeper.sampler.foo"),
        (QMC | {"qmc_type": "foo"}, "hydra.sweeper.sampler.qmc_type"),
        ({"_target_": "os.system"}, "hydra.sweeper.sampler._target_"),
        ({"_target_": None}, "hydra.sweeper.sampler"),
    ],
)
def test_a_mistake_in_the_sampler_names_its_key(node, key, space):
    with pytest.raises(ConfigError) as caught:
        make_sampler(node, 0, 0, space)
    assert caught.value.key == key


@pytest.mark.parametrize("node", [RANDOM, QMC, QMC | {"qmc_type": "halton", "scramble": True}, TPE, CMAES, GP, NSGAII])
def test_a_stepped_range_is_sampled_at_its_own_values_and_found_again(node, stepped):
    values = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7}
    study = optuna.create_study()
    for number in range(9):
        trial_id = study._storage.create_new_trial(study._study_id)
        sampler = make_sampler(node, 0, number, stepped)
        configuration = draw(study, study._storage.get_trial(trial_id), sampler, stepped, {})
        assert configuration.values["optimizer.lr"] in values
        for name, distribution in stepped.distributions(configuration).items():
            internal = distribution.to_internal_repr(configuration.params[name])
            study._storage.set_trial_param(trial_id, name, internal, distribution)
        study._storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [float(number % 3)])
        assert study.trials[-1].params == configuration.params
        study.trials[-1]._validate()


@pytest.fixture(scope="module")
def stepped() -> Space:
    return space_of(
        "scheduler=constant", "optimizer.lr=range(0.1,0.8,step=0.1)", "model.dropout=range(0.0,0.5,step=0.1)"
    )


def test_brute_force_tries_everything_once_the_enqueued_first():
    finite = space_of("scheduler=constant", "optimizer.lr=0.1,0.2", "model.dropout=0.0,0.5", "trainer.batch_size=8")
    node = {"_target_": "optuna.samplers.BruteForceSampler"}
    settings = StudySettings(sampler=node, enqueue=[{"optimizer.lr": 0.2}], defaults_first=False)
    plan = make_plan(settings, finite, finite.composer.master, "s", StudyFolder("s"), 1)
    tried = [tuple(c.values.values()) for c in plan.rehearse(range(plan.n_trials))]
    assert sorted(tried) == [(0.1, 0.0), (0.1, 0.5), (0.2, 0.0), (0.2, 0.5)]
    assert tried[0][0] == 0.2
    with pytest.raises(ConfigError, match=r"optimizer.lr.* is not a grid"):
        make_plan(
            StudySettings(sampler=node),
            space_of("scheduler=constant"),
            finite.composer.master,
            "s",
            StudyFolder("s"),
            1,
        )


class Broken(RandomSampler):
    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        raise KeyError("no such thing")


def test_a_sampler_of_the_users_own_that_fails_is_one_line(space, monkeypatch):
    monkeypatch.setenv("SWEEP_TARGETS", f"{__name__}.*")
    settings = StudySettings(sampler={"_target_": f"{__name__}.Broken"})
    plan = make_plan(settings, space, space.composer.master, "s", StudyFolder("s"), 1)
    with pytest.raises(ConfigError, match="hydra/sweeper/sampler: cannot search this: 'no such thing'"):
        plan.rehearse([1])


def test_an_enqueued_value_of_a_stepped_range_is_tried_first(stepped):
    settings = StudySettings(enqueue=[{"optimizer.lr": 0.7}, {"optimizer.lr": 0.1 + 0.2}], defaults_first=False)
    known = initial_params(settings, stepped, {})
    order = shuffled(stepped, 0, known)
    assert [c.values["optimizer.lr"] for c in order[:2]] == [0.7, 0.3]
