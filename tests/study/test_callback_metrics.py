"""A study, a comparison and a run follow a metric that a callback declares, as they follow one of the task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from processes import error_line, quick, recorded
from torch import nn

from sweep import Outcome, Trial, run_comparison, run_study
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.training import checkpoint

pytestmark = [pytest.mark.process, pytest.mark.targets(f"{__name__}.*")]

SMALL = ("data.n=60", "model.widths=[4]", "trainer.batch_size=16", "scheduler=constant", "tracking=off")


class Score:
    """Better the closer the learning rate is to 0.01, and in the middle of a trial."""

    metrics: ClassVar = {"score": "maximize", "test/score": "minimize"}

    def __init__(self) -> None:
        self.lr, self.seen = 0.0, 0

    def on_epoch_end(self, trial: Trial, model: nn.Module, metrics: Mapping[str, float]) -> dict[str, float]:
        self.lr, self.seen = metrics["lr"], self.seen + 1
        return {"score": 100 - 1000 * abs(self.lr - 0.01) - abs(self.seen - 2)}

    def on_train_end(self, trial: Trial, model: nn.Module) -> dict[str, float]:
        return {"test/score": abs(self.lr - 0.003)}


CALLBACK = f"trainer.callbacks=[{{_target_: {__name__}.Score}}]"


@pytest.fixture(autouse=True)
def _in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_study_maximises_it_and_its_best_weights_follow() -> None:
    lrs = [0.1, 0.02, 0.011, 0.003]
    study = run_study(
        [CALLBACK, *SMALL, "trainer.epochs=4"],
        {"optimizer.lr": lrs},
        study_name="s",
        objective="score",
        sampler="grid",
        pruner="none",
    )
    assert study.best is not None
    assert study.best.params["optimizer.lr"] == 0.011
    assert study.best.value == pytest.approx(99)
    for trial in study.results:
        run = RunFolder(Path("outputs/studies/s/trials") / str(trial.number))
        assert max(recorded(run)["score"][1]) == recorded(run)["score"][1][1] == trial.value
        best = checkpoint.load(run.best)
        assert (best["monitor"], best["epoch"], best["value"]) == ("score", 2, trial.value)
    values = yaml.safe_load(StudyFolder(Path("outputs/studies/s")).best.read_text())
    assert "trainer.monitor=score" in values["overrides"]


def test_a_study_prunes_by_it_and_minimises_what_is_declared_for_the_end() -> None:
    study = run_study(
        [CALLBACK, *SMALL, "trainer.epochs=6"],
        {"optimizer.lr": [0.011, 0.02, 0.03, 0.04]},  # the score falls from trial to trial
        study_name="p",
        objective="score",
        sampler="grid",
        pruner="asha",
    )
    assert [trial.state for trial in study.results] == ["complete", "pruned", "pruned", "pruned"]
    study = run_study(
        [CALLBACK, *SMALL, "trainer.epochs=1"],
        {"optimizer.lr": [0.1, 0.004]},
        study_name="e",
        objective="test/score",
        sampler="grid",
    )
    assert study.best is not None
    assert study.best.value == pytest.approx(0.001)


def test_a_comparison_judges_by_it() -> None:
    result = run_comparison(
        [CALLBACK, *SMALL, "trainer.epochs=1", "optimizer.lr=0.004", "compare.n_seeds=2", "compare.metric=test/score"],
        {"optimizer": ["sgd", "adam"]},
        n_trials=1,
    )
    values = [run.values["test/score"] for entry in result.entries for run in entry.runs if run is not None]
    assert values == pytest.approx([0.001] * 4)


def test_a_run_shows_it(small_trial: Any) -> None:
    outcome: Outcome = small_trial(CALLBACK, "trainer.monitor=score", "scheduler=constant")
    assert (outcome.monitor, outcome.best_epoch) == ("score", 2)
    assert outcome.metrics["test/score"] == pytest.approx(0.007, abs=0.01)
    start = journal.first(RunFolder(outcome.folder).journal, "start")
    assert start is not None
    assert start["direction"] == "maximize"


def test_a_command_asks_for_a_goal_that_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Norm:\n    metrics = {'norm': 'least'}\n    def on_epoch_end(self, trial, model, metrics): ...\n"
    )
    own = ("trainer.callbacks=[{_target_: mine.Norm}]", "trainer.monitor=norm", "tracking=off")
    done = quick(tmp_path, *own, PYTHONPATH=str(tmp_path), SWEEP_TARGETS="mine.*")
    assert done.returncode == 2
    assert error_line(done) == (
        "error: trainer.callbacks.0.metrics.norm: is 'least'; write minimize or maximize, in the class or in the config"
    )
