"""What workers know of the process that started their study, when joblib reuses them for the next one."""

from pathlib import Path

import pytest

from sweep import run_study

pytestmark = pytest.mark.process

TRAIN = """
import os
from pathlib import Path

def train(cfg, trial):
    return {"val/loss": float(Path("value.txt").read_text()), "pid": os.getpid()}
"""


def test_reused_workers_read_import_and_trust_as_the_next_study_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers: list[set[float]] = []
    for value, module in ((1.0, "first_training"), (2.0, "second_training")):
        folder = tmp_path / module
        folder.mkdir()
        (folder / "value.txt").write_text(str(value))
        (folder / f"{module}.py").write_text(TRAIN)
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("SWEEP_TARGETS", f"{module}.*")
        study = run_study(
            ["trainer=function", f"trainer.call={module}.train", "tracking=off"],
            {"+x": "interval(0,1)"},
            n_trials=2,
            n_jobs=2,
            sampler="random",
            pruner="none",
            objective=["val/loss", "pid"],
            direction=["minimize", "minimize"],
        )
        found = [trial.values for trial in study.results]
        assert [loss for loss, _ in found] == [value] * 2
        workers.append({pid for _, pid in found})
    assert workers[0] & workers[1], "joblib reuses its processes"
