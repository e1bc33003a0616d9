"""`hydra.sweeper.debug=true`: a study in the process of its command, where a debugger works."""

import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from processes import environment, quick

from sweep.tracking.folders import StudyFolder

pytestmark = pytest.mark.process  # commands, servers, a browser

_MODEL = """
import os
from torch import nn


class Model(nn.Linear):
    def __init__(self, in_features: int, out_features: int, kind: str):
        super().__init__(in_features, out_features)
        print("trains in", os.getpid(), flush=True)
        if kind == "stops":
            answer = 42
            breakpoint()
        if kind == "fails":
            raise RuntimeError("to be mended")
"""
_STUDY = (
    *("-m", "experiment=debug", "tracking=off", "hydra.sweeper.study_name=s", "hydra/sweeper/sampler=grid"),
    *("model._target_=mine.Model", "~model.widths", "~model.activation", "~model.dropout", "scheduler=constant"),
    *("optimizer.lr=0.1", "trainer.batch_size=16", "hydra.sweeper.n_jobs=2", "hydra.sweeper.debug=true"),
)


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(_MODEL)
    return tmp_path


def test_the_first_failure_ends_the_study_with_its_traceback(cwd: Path) -> None:
    done = quick(cwd, *_STUDY, "+model.kind=works,fails,never", PYTHONPATH=str(cwd), SWEEP_TARGETS="mine.*")
    assert done.returncode != 0
    assert 'raise RuntimeError("to be mended")' in done.stdout, "as Hydra logs"
    assert done.stderr.splitlines()[-1].startswith("error: model: to be mended")
    assert len({line for line in done.stdout.splitlines() if line.startswith("trains in")}) == 1, "one process"
    storage = JournalStorage(JournalFileBackend(str(StudyFolder(cwd / "outputs" / "studies" / "s").storage)))
    trials = optuna.load_study(study_name="s", storage=storage).get_trials()
    assert [t.state.name for t in trials] == ["COMPLETE", "FAIL"]


def test_a_breakpoint_in_a_users_model_opens_the_debugger(cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sweep.run", *_STUDY, "+model.kind=stops"],
        cwd=cwd,
        env=environment(PYTHONPATH=str(cwd), SWEEP_TARGETS="mine.*"),
        input="p answer\nc\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "(Pdb) 42" in done.stdout
    assert "1 of 1 trials: 1 complete" in done.stdout
