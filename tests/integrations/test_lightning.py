"""sweep/integrations/lightning.py, with Lightning itself."""

import importlib
import logging
import sys
from pathlib import Path

import pytest
from trained import function_training

from sweep.testing import TrialInMemory, check_training_function
from sweep.trial.function import FunctionTraining

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning"),
    pytest.mark.targets("lightning_functions.*"),
]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def training(name: str) -> FunctionTraining:
    return function_training(f"lightning_functions.{name}")


def test_a_trial_is_pruned_and_resumes_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    check_training_function(training("train"), tmp_path)
    assert [*tmp_path.rglob("*.ckpt")] == []


@pytest.mark.parametrize(
    ("name", "steps"),
    [("train", [1, 2, 3]), ("validates_twice", [2, 4, 6, 8, 10, 12]), ("validates_every_other_epoch", [2, 4])],
)
def test_the_steps_of_reports_are_those_of_validations(name: str, steps: list[int], tmp_path: Path) -> None:
    trial = TrialInMemory(tmp_path)
    training(name)(trial)
    assert [*trial.reports] == steps
    assert {*map(frozenset, trial.reports.values())} == {frozenset({"val/loss"})}, "and no metric of the training"


def test_without_lightning_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "sweep.integrations.lightning", raising=False)
    with pytest.raises(ImportError) as raised:
        importlib.import_module("sweep.integrations.lightning")
    assert str(raised.value) == "sweep.integrations.lightning needs Lightning:  pip install 'hydra-sweep[lightning]'"
