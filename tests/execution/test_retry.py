"""Failed trials that are trained again by the same command."""

from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from processes import quick, recorded
from study_folders import folder_of

from sweep.execution.attempts import numbered, renumbered, retry, trials_of

pytestmark = pytest.mark.process  # commands, servers, a browser

BROKEN = """
from pathlib import Path
from torch import nn


class Model(nn.Sequential):
    def __init__(self, in_features: int, out_features: int, kind: str):
        super().__init__(nn.Linear(in_features, 4), nn.Tanh(), nn.Linear(4, out_features))
        if kind == "b" and not Path("mended").exists():
            raise RuntimeError("to be mended")
"""
STUDY = (
    *("-m", "experiment=debug", "tracking=off", "hydra.sweeper.study_name=s", "hydra/sweeper/sampler=random"),
    *("model._target_=broken.Model", "~model.widths", "~model.activation", "~model.dropout", "+model.kind=a,b"),
    *("hydra.sweeper.enqueue=[{model.kind: b}, {model.kind: a}]", "hydra/sweeper/pruner=none"),
    "hydra.sweeper.max_failure_rate=1",
)
SAID = "1 trial failed (1); fix the cause, then add hydra.sweeper.retry_failed=true to the same command"


@pytest.fixture(scope="module")
def cwd(tmp_path_factory) -> Path:
    cwd = tmp_path_factory.mktemp("retry")
    (cwd / "broken.py").write_text(BROKEN)
    return cwd


def searched(cwd: Path, *overrides: str, module: str = "sweep.run") -> str:
    done = quick(cwd, *overrides, module=module, PYTHONPATH=str(cwd), SWEEP_TARGETS="broken.*")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def study_of(cwd: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(folder_of(cwd).storage)))
    return optuna.load_study(study_name="s", storage=storage)


def states(trials: list[FrozenTrial]) -> list[tuple[int, str]]:
    return [(t.number, t.state.name) for t in trials]


def test_failed_trials_are_named_trained_again_and_keep_their_numbers(cwd):
    command = (*STUDY, "hydra.sweeper.n_trials=3")
    for _ in range(2):  # the second time there is nothing to do, and yet something to say
        assert searched(cwd, *command).splitlines()[-1].startswith(SAID)
    before = trials_of(study_of(cwd))
    assert states(before)[:2] == [(0, "COMPLETE"), (1, "FAIL")]

    still_broken = searched(cwd, *command, "hydra.sweeper.retry_failed=true")
    assert "failed trials that are trained again: 1" in still_broken
    assert still_broken.splitlines()[-1].startswith(SAID)

    (cwd / "mended").touch()
    assert searched(cwd, "retry", "s", module="sweep.studies").startswith("trials queued again: 1; ")
    assert searched(cwd, "retry", "s", module="sweep.studies") == "none failed\n"
    shown = searched(cwd, *STUDY, "hydra.sweeper.n_trials=5", "hydra.sweeper.pack=2")
    assert "failed" not in shown.splitlines()[-1]
    assert "5 of 5 trials: 5 complete" in shown
    after = trials_of(study_of(cwd))
    assert states(after) == [(number, "COMPLETE") for number in range(5)]
    assert after[1].params == before[1].params
    assert [t.params for t in after[:3]] == [t.params for t in before[:3]]
    for trial in after:
        assert trial.value == min(recorded(folder_of(cwd).trial(trial.number))["val/loss"][1])
    kept = folder_of(cwd).trials
    assert "to be mended" in (kept / "1.failed-1" / "error.txt").read_text()
    assert "to be mended" in (kept / "1.failed-2" / "error.txt").read_text()
    assert not (kept / "1" / "error.txt").exists()
    assert f"(trial {min(after, key=lambda t: t.value or 0).number})" in shown

    nothing_left = searched(cwd, *STUDY, "hydra.sweeper.n_trials=5", "hydra.sweeper.retry_failed=true")
    assert "5 of 5 trials are done" in nothing_left
    assert len(study_of(cwd).get_trials()) == 7


def test_the_report_of_such_a_study_counts_each_trial_once(cwd):
    searched(cwd, "s", module="sweep.report")
    page = folder_of(cwd).report.read_text()
    assert "to be mended" not in page


def test_the_latest_attempt_at_a_number_counts():
    study = optuna.create_study()
    study.ask()
    study.tell(0, state=TrialState.FAIL)
    study.ask()
    study.tell(1, 3.0)
    assert renumbered(study) is study
    retry(study, [0])
    assert states(numbered(study.get_trials())) == [(0, "WAITING"), (1, "COMPLETE")]
    assert study.get_trials()[2].number == 2, "Optuna's own is left as it is"
    assert states(renumbered(study).get_trials()) == [(0, "WAITING"), (1, "COMPLETE")]


def test_a_grid_trains_its_failed_trials_again(tmp_path: Path):
    (tmp_path / "broken.py").write_text(BROKEN)
    grid = [*(o for o in STUDY if "enqueue" not in o and "sampler=" not in o), "hydra/sweeper/sampler=grid"]
    grid += ["scheduler=constant", "optimizer.lr=0.1", "trainer.batch_size=16"]
    assert searched(tmp_path, *grid).splitlines()[-1].startswith(SAID)
    (tmp_path / "mended").touch()
    assert "2 of 2 trials: 2 complete" in searched(tmp_path, *grid, "hydra.sweeper.retry_failed=true")
    trials = trials_of(study_of(tmp_path))
    assert states(trials) == [(0, "COMPLETE"), (1, "COMPLETE")]
    assert sorted(t.params["model.kind"] for t in trials) == ["a", "b"]
