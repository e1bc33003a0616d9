"""The options of hydra/sweeper/pruner: at which epoch each stops which trial."""

import math
from collections.abc import Sequence
from typing import Literal

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.pruners import BasePruner

from sweep.config.options import CONF_DIR
from sweep.config.output_folders import register
from sweep.search import build
from sweep.search.pruners import PatientPruner

OPTIONS = CONF_DIR / "hydra" / "sweeper" / "pruner"
EPOCHS = 60
Direction = Literal["minimize", "maximize"]


def option(name: str) -> BasePruner:
    register()
    settings = {"hydra": {"sweeper": {"max_epochs": EPOCHS}}}
    config = OmegaConf.merge(settings, {"pruner": OmegaConf.load(OPTIONS / f"{name}.yaml")})
    node = OmegaConf.to_container(config, resolve=True)
    assert isinstance(node, dict)
    return build.pruner(node["pruner"])


def epochs_of(pruner: BasePruner, curves: Sequence[Sequence[float]], direction: Direction = "minimize") -> list[int]:
    """How many epochs each trial lasts, one after the other, each reporting its best so far."""
    study = optuna.create_study(study_name="s", pruner=pruner, direction=direction)  # hyperband draws from the name
    return [_epochs(study, curve) for curve in curves]


def _epochs(study: optuna.Study, curve: Sequence[float]) -> int:
    trial = study.ask()
    best_of = min if study.direction == optuna.study.StudyDirection.MINIMIZE else max
    for epoch in range(1, len(curve) + 1):
        best = best_of(curve[:epoch])
        trial.report(best, epoch)
        if trial.should_prune():
            study.tell(trial, best)
            return epoch
    study.tell(trial, best_of(curve))
    return len(curve)


def learning(floor: float) -> list[float]:
    return [floor + math.exp(-epoch / 10) for epoch in range(EPOCHS)]


GOOD = [learning(floor) for floor in (0.10, 0.11, 0.12, 0.13, 0.14, 0.15)]
BAD = learning(0.5)


@pytest.mark.parametrize(("name", "expected"), [("none", EPOCHS), ("median", 10), ("asha", 5), ("hyperband", 5)])
def test_a_bad_trial_after_good_ones_ends_at_the_first_look(name, expected):
    epochs = epochs_of(option(name), [*GOOD, *GOOD, *GOOD, BAD, BAD, BAD])
    assert min(epochs[-3:]) == expected  # hyperband lets a share of the trials run longer


@pytest.mark.parametrize("name", ["none", "median", "asha", "hyperband", "patient"])
def test_the_best_trial_of_all_runs_to_its_end(name):
    assert epochs_of(option(name), [*GOOD, learning(0.05)])[-1] == EPOCHS


def test_patient_leaves_a_bad_trial_alone_as_long_as_it_gets_better():
    stuck = [*BAD[:20], *[BAD[19]] * (EPOCHS - 20)]
    assert epochs_of(option("patient"), [*GOOD, BAD, stuck])[-2:] == [EPOCHS, 25]


def test_patient_stops_bad_trials_of_a_cyclic_schedule():
    """Such a trial gets better at the end of each cycle of 10 epochs alone."""
    cyclic = [BAD[10 * (epoch // 10) + (epoch % 10 if epoch % 10 > 6 else 0)] for epoch in range(EPOCHS)]
    assert epochs_of(option("patient"), [*GOOD, cyclic])[-1] < EPOCHS / 2


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_patience_without_another_pruner_is_early_stopping(direction, sign):
    noisy = [sign * value for value in (9.0, 8.0, 8.5, 7.0, 7.1, 7.2, 7.3, 1.0)]
    assert epochs_of(PatientPruner(None, patience=3), [noisy], direction) == [7]
    assert epochs_of(PatientPruner(None, patience=2, min_delta=1.0), [noisy], direction) == [3]
    assert epochs_of(PatientPruner(None, patience=4), [noisy], direction) == [8]


@pytest.mark.parametrize("arguments", [{"patience": 0}, {"patience": 1, "min_delta": -0.1}])
def test_patience_refuses_what_it_cannot_do(arguments):
    with pytest.raises(ValueError, match="must be >="):
        PatientPruner(None, **arguments)
