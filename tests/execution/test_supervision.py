"""sweep/execution/supervision.py: a worker in a process of its own ends in any case, and loses no trial."""

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from optuna.trial import TrialState
from processes import quick, quick_start
from study_folders import trials_of
from waiting import wait_until

from sweep.execution.plan import WorkerPlan
from sweep.execution.session import Announce
from sweep.execution.supervision import supervise

pytestmark = pytest.mark.process

TESTS = str(Path(__file__).parents[1])


def test_a_thread_that_a_function_left_keeps_no_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweep.execution.supervision._GRACE_S", 0.2)
    plan: Any = SimpleNamespace(launcher_pid=-1, settings=SimpleNamespace(trial_timeout=0.2))

    def work(announce: Announce) -> int:
        threading.Thread(target=time.sleep, args=(1000,)).start()
        return os.getpid()

    pid = supervise(cast("WorkerPlan", plan), work)
    assert pid is not None
    assert not psutil.pid_exists(pid)


def test_a_command_that_is_killed_fails_no_trial(tmp_path: Path) -> None:
    command = ["-m", "trainer=function", "trainer.call=functions.killed", "trainer.epochs=8", "tracking=off", "+x=1.0"]
    command += ["+saves=true", f"+trace={tmp_path / 'trace'}", "hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=2"]
    command += ["hydra/sweeper/pruner=none", '+search.x="choice(1.0,2.0)"', "hydra.sweeper.trial_timeout=900"]
    own: dict[str, Any] = {"SWEEP_TARGETS": "functions.*", "PYTHONPATH": TESTS}
    with quick_start(tmp_path, *command, **own) as process:
        wait_until((tmp_path / "here").exists, process)
        process.send_signal(signal.SIGKILL)
    worker = int((tmp_path / "here").read_text())
    (tmp_path / "go").touch()
    wait_until(lambda: not psutil.pid_exists(worker))
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.COMPLETE, TrialState.WAITING]
    done = quick(tmp_path, *command, **own)
    assert (done.returncode, done.stderr) == (0, "")
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.COMPLETE] * 2
