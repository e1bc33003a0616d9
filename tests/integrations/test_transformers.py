"""sweep/integrations/transformers.py, with Transformers itself."""

import importlib
import sys
from pathlib import Path

import pytest
from trained import function_training

from sweep.testing import TrialInMemory, check_training_function
from sweep.trial.function import FunctionTraining

pytestmark = [pytest.mark.slow, pytest.mark.targets("transformers_functions.*")]


def training(name: str) -> FunctionTraining:
    return function_training(f"transformers_functions.{name}")


def test_a_trial_is_pruned_and_resumes_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    check_training_function(training("train"), tmp_path)
    assert [*tmp_path.glob("*/resumed-*"), *tmp_path.glob("*/trainer/checkpoint-*")] == []


@pytest.mark.parametrize(("name", "steps"), [("train", [1, 2, 3]), ("evaluates_by_steps", [5, 10, 12])])
def test_the_steps_of_reports_are_those_of_evaluations(name: str, steps: list[int], tmp_path: Path) -> None:
    trial = TrialInMemory(tmp_path)
    training(name)(trial)
    assert [*trial.reports] == steps
    assert {*map(frozenset, trial.reports.values())} == {frozenset({"eval_loss"})}, "and neither speed nor test metrics"


def test_a_checkpoint_has_its_folders_and_replaces_what_a_dead_process_left(tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments  # seconds, where no such test runs too

    from sweep.integrations.transformers import TrialCallback

    stale = tmp_path / "resumed-0" / "stale"
    saved = tmp_path / "trainer" / "checkpoint-3" / "adapter" / "weights"
    for file in (stale, saved):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"w")
    arguments = TrainingArguments(str(tmp_path / "trainer"), save_strategy="no", use_cpu=True, report_to="none")
    TrialCallback(TrialInMemory(tmp_path)).on_save(arguments, TrainerState(epoch=1, global_step=3), TrainerControl())
    assert not saved.exists()
    callback = TrialCallback(TrialInMemory(tmp_path))
    assert callback.checkpoint == callback.checkpoint == str(stale.parent)
    assert [path.relative_to(stale.parent) for path in stale.parent.rglob("*")] == [
        Path("adapter"),
        Path("adapter/weights"),
    ]


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("transformers",):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "sweep.integrations.transformers", raising=False)
    with pytest.raises(ImportError) as raised:
        importlib.import_module("sweep.integrations.transformers")
    assert (
        str(raised.value)
        == "sweep.integrations.transformers needs Transformers:  pip install 'hydra-sweep[transformers]'"
    )
