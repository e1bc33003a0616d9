"""Samplers that learn do better than random search under the pruner that they get by default."""

import math
import statistics
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from spaces import hydra_of_its_own, master_of

from sweep.execution.attempts import trials_of
from sweep.execution.plan import WorkerPlan
from sweep.search import build
from sweep.search.making import make_space
from sweep.search.settings import NO_PRUNER, StudySettings, settings_of
from sweep.search.space import Space
from sweep.tracking.folders import StudyFolder

EPOCHS, N_TRIALS, SEEDS = 12, 40, (0, 1, 2)
SEARCH = (
    *(f"trainer.epochs={EPOCHS}", "scheduler=constant", "trainer.batch_size=16"),
    *("optimizer.lr=tag(log, interval(1e-4, 1e-1))", "optimizer.eps=tag(log, interval(1e-9, 1e-5))"),
    "optimizer.weight_decay=tag(log, interval(1e-6, 1e-2))",
)
LEARNING = ("tpe", "cmaes", "gp", "nsgaii", "nsgaiii")
COMPLETE_ONLY = LEARNING[1:]


def chosen(*overrides: str) -> tuple[StudySettings, Space]:
    with hydra_of_its_own() as hydra:
        master = master_of(hydra, [*overrides, *SEARCH])
        return settings_of(master), make_space(hydra.config_loader, master, SEARCH)


def curve(params: dict[str, Any]) -> list[float]:
    """A bowl around a point of the space, to which a trial comes down over its epochs."""
    at = [math.log10(params[key]) for key in ("optimizer.lr", "optimizer.eps", "optimizer.weight_decay")]
    floor = (at[0] + 1.7) ** 2 + 0.3 * (at[1] + 6) ** 2 + 0.3 * (at[2] + 3) ** 2
    return [floor + 2 * math.exp(-epoch / 3) for epoch in range(1, EPOCHS + 1)]


def best_of(settings: StudySettings, space: Space, seed: int, n_trials: int = N_TRIALS) -> float:
    """What a study comes to whose worker proposes, reports and prunes as the product's does."""
    study = optuna.create_study(pruner=build.pruner(settings.pruner))
    storage = study._storage
    plan = WorkerPlan(
        settings=settings,
        name="s",
        folder=StudyFolder(Path("unused")),
        space=space,
        n_trials=n_trials,
        known=[],
        order=None,
        uid="",
        seed=seed,
    )
    for number in range(n_trials):
        trial_id = storage.create_new_trial(study._study_id, optuna.create_trial(state=TrialState.RUNNING))
        configuration = plan.propose(study, storage.get_trial(trial_id), number)
        for name, distribution in space.distributions(configuration).items():
            internal = distribution.to_internal_repr(configuration.params[name])
            storage.set_trial_param(trial_id, name, internal, distribution)
        values, state = curve(configuration.params), TrialState.COMPLETE
        for step, value in enumerate(values, 1):
            storage.set_trial_intermediate_value(trial_id, step, value)
            if study.pruner.prune(study, storage.get_trial(trial_id)) and step < EPOCHS:
                state = TrialState.PRUNED
                break
        study.tell(number, None if state == TrialState.PRUNED else values[-1], state)
    return min(t.value for t in trials_of(study) if t.state == TrialState.COMPLETE and t.value is not None)


@pytest.fixture(scope="module")
def random_search() -> float:
    settings, space = chosen("hydra/sweeper/sampler=random")
    return statistics.median(best_of(settings, space, seed) for seed in SEEDS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("sampler", LEARNING)
def test_a_sampler_that_learns_beats_random_search(sampler, random_search):
    """Medians of three seeds, of 40 trials each. gp, which takes long, has one seed and 20 trials; nsgaii and
    nsgaiii, which draw their first population at random, have one of 8 instead of 50."""
    small = ["hydra.sweeper.sampler.population_size=8"] if sampler.startswith("nsga") else []
    settings, space = chosen(f"hydra/sweeper/sampler={sampler}", *small)
    seeds, n_trials = ((0,), 20) if sampler == "gp" else (SEEDS, N_TRIALS)
    assert statistics.median(best_of(settings, space, seed, n_trials) for seed in seeds) < random_search


@pytest.mark.parametrize("sampler", [*LEARNING, "random"])
def test_the_default_pruner_fits_the_sampler(sampler):
    settings, _ = chosen(f"hydra/sweeper/sampler={sampler}")
    assert (settings.pruner["_target_"] == NO_PRUNER) == (sampler in COMPLETE_ONLY)
    assert not settings.starves_its_sampler
    assert "by_sampler" not in settings.pruner


@pytest.mark.parametrize("sampler", LEARNING)
def test_a_pruner_of_ones_own_choice_is_kept(sampler):
    settings, _ = chosen(f"hydra/sweeper/sampler={sampler}", "hydra/sweeper/pruner=median")
    assert settings.pruner["_target_"] == "optuna.pruners.MedianPruner"
    assert settings.starves_its_sampler == (sampler in ("gp", "nsgaii", "nsgaiii"))
    assert settings.sampler.get("consider_pruned_trials", False) == (sampler == "cmaes")
