"""sweep/storage/optuna_internals.py: that Optuna still has what it takes, and that it still means the same."""

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.pruners import HyperbandPruner
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial

from sweep.storage.optuna_internals import add_trial, as_sampler_sees, contains_number, storage_of, trial_id


def changed(name: str) -> str:
    return f"Optuna {optuna.__version__} has changed {name}; sweep/storage/optuna_internals.py has to follow"


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(storage=InMemoryStorage())


def test_a_study_knows_its_storage(study: optuna.Study) -> None:
    assert hasattr(study, "_storage"), changed("Study._storage")
    assert storage_of(study).get_all_studies()[0].study_name == study.study_name


def test_a_trial_of_any_state_is_added_and_known_by_its_id(study: optuna.Study) -> None:
    assert hasattr(study, "_study_id"), changed("Study._study_id")
    study.add_trial(create_trial(value=1.0))
    half_begun = create_trial(
        state=TrialState.RUNNING,
        params={"x": 0.5},
        distributions={
            "x": FloatDistribution(0, 1),
        },
        user_attrs={"a": 1},
    )
    add_trial(study, half_begun)
    assert hasattr(half_begun, "_trial_id"), changed("FrozenTrial._trial_id")
    stored = storage_of(study).get_trial(trial_id(half_begun))
    assert (stored.number, stored.state, stored.params, stored.user_attrs) == (
        1,
        TrialState.RUNNING,
        {"x": 0.5},
        {"a": 1},
    )


def test_a_sampler_under_hyperband_sees_its_own_bracket() -> None:
    assert hasattr(optuna.pruners, "_filter_study"), changed("optuna.pruners._filter_study")
    pruner = HyperbandPruner(min_resource=1, max_resource=16, reduction_factor=2)
    study = optuna.create_study(study_name="s", pruner=pruner)
    for _ in range(30):
        trial = study.ask()
        trial.report(1.0, 1)
        trial.should_prune()  # sets the brackets up
        study.tell(trial, 1.0)
    seen = [len(as_sampler_sees(study, trial).get_trials()) for trial in study.trials]
    assert max(seen) < 30, changed("optuna.pruners._filter_study")
    assert min(seen) > 0


def test_a_range_contains_the_numbers_on_its_steps() -> None:
    steps = FloatDistribution(0, 1, step=0.25)
    assert hasattr(steps, "_contains"), changed("FloatDistribution._contains")
    assert [contains_number(steps, value) for value in (0.5, 0.6, 1.25)] == [True, False, False]
