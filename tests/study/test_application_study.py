"""Studies of another Hydra application: killed, refused. See test_template.py for the stock sweeper beside ours."""

import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from processes import error_line, quick, quick_start, recorded
from waiting import wait_until

from sweep import load_study
from sweep.tracking.folders import StudyFolder

pytestmark = pytest.mark.process

EXAMPLE = Path(__file__).parents[2] / "examples" / "application"
UNTRACKED = "hydra.sweeper.tracking.mlflow=false"

BAD = """
import asyncio
import sys
import time

import hydra
import sweep


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@hydra.main(config_path="conf", config_name="train")
def main(cfg):
    if cfg.seed == 0:
        raise ValueError("of two\\nlines")
    if cfg.seed == 1:
        sys.exit("of\\nlines")
    if cfg.seed == 2:
        return None
    if cfg.seed == 3:
        return float("nan")
    if cfg.seed == 6:
        time.sleep(3600)
    if cfg.seed == 7:
        raise asyncio.CancelledError
    if cfg.seed == 8:
        raise Unprintable
    if cfg.seed == 4:
        sweep.current_trial().report(1, {"loss": "low"})
    return 1.0, 2.0


if __name__ == "__main__":
    main()
"""

KILLED = """
import os
import re
import shlex
import time
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig

import sweep


@hydra.main(config_path="conf", config_name="train")
def main(cfg):
    trial = sweep.current_trial()
    assert Path.cwd() == Path(HydraConfig.get().runtime.output_dir) == trial.folder / "job"
    assert HydraConfig.get().job.num == trial.number
    state = trial.restore()
    total = 0.0 if state is None else state["total"]
    for epoch in range(trial.epoch + 1, 9):
        total += cfg.seed * epoch + torch.rand(()).item()
        trial.report(epoch, {"loss": total})
        with open("trace", "a") as file:  # in the job's folder
            file.write(f"{epoch}\\n")
        trial.save(epoch, {"total": total})
        if epoch == 4 and trial.number == 1 and not Path(cfg.here).exists():
            Path(cfg.here).write_text(str(os.getpid()))
            time.sleep(600)
    return -total


if __name__ == "__main__":
    main()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the example."""
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("outputs", "multirun"))
    return tmp_path


def train(folder: Path, *overrides: str, script: str = "train.py") -> subprocess.CompletedProcess[str]:
    return quick(folder, *overrides, module=script)


def test_a_killed_study_continues_each_trial(folder: Path) -> None:
    """Its controller is its worker, and is killed with `kill -9` in the middle of the second trial."""
    (folder / "killed.py").write_text(KILLED)
    command = ("-m", "hydra/sweeper=study", "hydra/sweeper/sampler=grid", "seed=1,2,3", f"+here={folder / 'here'}")
    command += ("hydra.sweeper.study_name=k", "hydra.job.chdir=true", UNTRACKED, "hydra.sweeper.direction=maximize")
    with quick_start(folder, *command, module="killed.py") as process:
        wait_until((folder / "here").exists, process)
        os.kill(int((folder / "here").read_text()), signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = train(folder, *command, script="killed.py")
    assert (done.returncode, done.stderr) == (0, "")
    study = StudyFolder(folder / "outputs" / "studies" / "k")
    trials = load_study(study.path).results
    assert [trial.state for trial in trials] == ["complete"] * 3
    for trial in trials:
        steps, values = recorded(study.trial(trial.number))["loss"]
        assert steps == [*range(1, 9)]
        assert trial.value == -values[-1]
        trace = study.trial(trial.number).path / "job" / "trace"
        assert trace.read_text().split() == [str(step) for step in steps], "each epoch was trained once"


def test_its_workers_run_on_submitit_too(folder: Path) -> None:
    launched = ("hydra/launcher=submitit_local", "hydra.sweeper.n_jobs=2", "hydra.sweeper.study_name=s", UNTRACKED)
    done = train(
        folder, "-m", "hydra/sweeper=study", "lr=interval(0.01,0.1)", "epochs=2", *launched, "hydra.sweeper.n_trials=3"
    )
    assert done.returncode == 0, done.stderr
    trials = load_study(folder / "outputs" / "studies" / "s").results
    assert [(trial.number, trial.state in ("complete", "pruned")) for trial in trials] == [(n, True) for n in range(3)]


def test_each_failure_is_a_line_and_the_study_goes_on(folder: Path) -> None:
    (folder / "bad.py").write_text(BAD)
    command = ("-m", "hydra/sweeper=study", "hydra/sweeper/sampler=grid", "seed=0,1,2,3,4,5,6,7,8", UNTRACKED)
    command += ("hydra.sweeper.max_failure_rate=1", "hydra.sweeper.trial_timeout=6")
    done = train(folder, *command, script="bad.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Traceback" not in done.stdout
    study = StudyFolder(next((folder / "outputs" / "studies").iterdir()))
    assert "ValueError: of two\nlines" in study.trial(0).error.read_text()
    lines = [line for line in done.stdout.splitlines() if "  trial " in line]
    shown = [line.partition("  trial ")[2] for line in lines]
    assert shown[:3] == [
        "0  failed: bad: ValueError: of two lines",
        "1  failed: bad: called sys.exit(of lines); return, or raise an error",
        "2  failed: bad: returned None, not a number; return it, or name a metric that it reports with "
        "hydra.sweeper.objective",
    ]
    assert shown[3].startswith("3  -  diverged: objective is nan")
    assert shown[4].startswith("4  failed: bad: reported in epoch 1: loss = 'low', which is not a number")
    assert shown[5].startswith("5  failed: bad: returned (1.0, 2.0), not a number")
    assert shown[6].startswith("6  failed: hydra.sweeper.trial_timeout: the trial took longer than 6 s; raise it")
    assert shown[7:] == ["7  failed: bad: CancelledError: CancelledError", "8  failed: bad: Unprintable: Unprintable"]


def test_its_config_says_when_a_key_is_searched(folder: Path) -> None:
    config = folder / "conf" / "train.yaml"
    own = config.read_text().replace("seed: 0", "seed: ???")
    config.write_text(own + "\nsearch: {lr: '0.1,0.2', seed: '1,2'}\nwhen: {lr: seed == 2}\n")
    command = ("-m", "hydra/sweeper=study", "hydra/sweeper/sampler=grid", "epochs=1", UNTRACKED)
    done = train(folder, *command, "hydra.sweeper.study_name=s")
    assert (done.returncode, done.stderr) == (0, "")
    trials = load_study(folder / "outputs" / "studies" / "s").results
    assert [trial.params for trial in trials] == [{"seed": 1}, {"seed": 2, "lr": 0.1}, {"seed": 2, "lr": 0.2}]
    job = OmegaConf.load(StudyFolder(folder / "outputs" / "studies" / "s").trial(0).path / "job/.hydra/config.yaml")
    assert job.lr == OmegaConf.load(config).lr
    assert error_line(train(folder, *command, "+when.momentum='seed == 2'")).startswith(
        "error: when.momentum: is the c"
    )


def test_what_cannot_be_searched_is_one_line(folder: Path) -> None:
    for override, message in (
        ("lrr=1,2", "lrr: Could not override 'lrr'"),
        ("model=tanh,nope", "model: no option 'nope'; choose one of: tanh"),
        ("hydra.sweeper.params={lr: 'interval(1'}", "lr: cannot read 'lr=interval(1': it is wrong or ends too early"),
    ):
        done = train(folder, "-m", "hydra/sweeper=study", override)
        assert done.returncode == 2
        assert error_line(done).startswith(f"error: {message}")
        assert not (folder / "outputs").exists()


def test_the_page_is_as_it_says(tmp_path: Path) -> None:
    """Its files, and each command of the first block."""
    page = (EXAMPLE.parents[1] / "docs" / "applications.md").read_text(encoding="utf-8")
    for language, text in re.findall(r"^```(python|yaml)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        name = re.match(r"# (\S+)\n", text)
        assert name is not None, language
        (tmp_path / name[1]).parent.mkdir(exist_ok=True)
        (tmp_path / name[1]).write_text(text)
    block = re.search(r"^```\n(python train.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert block is not None
    for command in block[1].replace("\\\n", " ").splitlines():
        words = shlex.split(command)[2:]
        done = train(tmp_path, *words, *([UNTRACKED] if "-m" in words else []))
        assert (done.returncode, done.stderr) == (0, ""), command
    studies = [load_study(folder) for folder in (tmp_path / "outputs" / "studies").iterdir()]
    assert sorted(len(study.results) for study in studies) == [8, 9]
