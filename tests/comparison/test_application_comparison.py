"""`hydra/sweeper=compare` in another Hydra application: its options, tuned and tested."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import error_line, quick

from sweep import load_study

pytestmark = pytest.mark.process

APPLICATION = """
import random

import hydra

import sweep


@hydra.main(config_path="conf", config_name="main")
def main(cfg):
    noise = random.Random(cfg.seeds.all).random()
    loss = (cfg.optimizer.lr - 0.5) ** 2
    sweep.current_trial().report(1, {"val/loss": loss})
    sweep.current_trial().finish({"test/score": -loss - cfg.optimizer.penalty - noise / 100})
    return loss


if __name__ == "__main__":
    main()
"""
FILES = {
    "app.py": APPLICATION,
    "conf/main.yaml": "defaults: [optimizer: sgd, _self_]\nseeds: {all: 3}\ntext: x\n"
    "search: {optimizer.lr: 'interval(0, 1)'}\n",
    "conf/optimizer/sgd.yaml": "lr: 0.1\npenalty: 0\n",
    "conf/optimizer/adam.yaml": "lr: 0.2\npenalty: 1\n",
}
COMPARE = ("-m", "hydra/sweeper=compare", "optimizer=sgd,adam", "hydra.sweeper.tracking.mlflow=false")
SEED = "hydra.sweeper.compare.seed=seeds.all"
SMALL = (SEED, "hydra.sweeper.compare.name=c", "hydra.sweeper.compare.n_seeds=6", "hydra.sweeper.n_trials=2")
SCORE = ("hydra.sweeper.objective=[val/loss]", "hydra.sweeper.compare.metric=test/score")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def compare(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return quick(folder, *COMPARE, *overrides, module="app.py")


def facts(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "outputs/comparisons/c/comparison.yaml").read_text())


def test_what_it_returns_is_compared_on_fresh_seeds(folder: Path) -> None:
    done = compare(folder, *SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    found = facts(folder)
    (task,), seeds = found["tasks"], found["seeds"]
    assert len({*seeds} - {3}) == 6
    for name in ("sgd", "adam"):
        tuning = load_study(folder / f"outputs/studies/c--{name}--tuning").results
        assert [trial.params.keys() for trial in tuning] == [{"optimizer.lr"}] * 12
        (chosen,) = folder.glob(f"outputs/studies/c--{name}--chosen-*")
        tested = load_study(chosen).results
        assert [trial.params["seeds.all"] for trial in tested] == seeds
        best = [min(tuning[n::6], key=lambda t: t.value or 0.0) for n in range(6)]
        assert [trial.value for trial in tested] == [trial.value for trial in best]
        assert task["contenders"][name]["scores"]["by_seed"] == [trial.value for trial in tested]
        untuned = {"sgd": 0.4**2, "adam": 0.3**2}[name]
        assert task["contenders"][name]["untuned"]["by_seed"] == pytest.approx([untuned] * 6)
    assert found["command"].startswith("python app.py -m hydra/sweeper=compare ")
    again = compare(folder, *SMALL)
    assert again.stdout.count("(done before)") == 6


def test_a_test_result_is_compared(folder: Path) -> None:
    """Its direction is that of the objective, if they have the same name; else it has to be said."""
    done = compare(folder, *SMALL, *SCORE)
    assert error_line(done).startswith("error: hydra.sweeper.compare.metric: 'test/score' has no known direction")
    assert not (folder / "outputs").exists()
    (folder / "app.py").write_text(APPLICATION.replace('{"val/loss": loss}', '{"val/score": -loss}'))
    own = ("hydra.sweeper.objective=val/score", "hydra.sweeper.direction=maximize")
    done = compare(folder, *SMALL, SCORE[1], *own)
    assert (done.returncode, done.stderr) == (0, "")
    (task,) = facts(folder)["tasks"]
    assert task["verdict"].startswith("sgd is not beaten. sgd is better than adam (")
    scores = task["contenders"]["sgd"]["scores"]["by_seed"]
    assert len({*scores}) == 6, "each seed counts"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ((), "hydra.sweeper.compare.seed: is needed: the key of your config"),
        (["hydra.sweeper.compare.seed=seed"], "hydra.sweeper.compare.seed: names 'seed', which is None; name a key"),
        (["hydra.sweeper.compare.seed=text"], "hydra.sweeper.compare.seed: names 'text', which is x; name a key"),
        ([SEED, "seeds.all=1,2"], "seeds.all: is what each contender is trained on many of"),
        ([SEED, "hydra.sweeper.compare.n_seeds=1"], "hydra.sweeper.compare.n_seeds: must be 2 to 1000, got 1"),
        ([SEED, "hydra/sweeper/sampler=tpe"], "hydra/sweeper/sampler: only random draws make tunings"),
    ],
)
def test_what_cannot_be_compared_is_one_line(folder: Path, overrides: list[str], line: str) -> None:
    done = compare(folder, *overrides)
    assert done.returncode == 2
    assert error_line(done).startswith(f"error: {line}")
    assert not (folder / "outputs").exists()
