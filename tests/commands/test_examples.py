"""The worked examples: each is short, docs/examples.md shows it in full, and its commands do what the page says."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import mlflow_curve, mlflow_runs, quick, recorded

from sweep import compose, load_study
from sweep.config.schema import validate
from sweep.data.split import Part
from sweep.tracking.folders import StudyFolder
from sweep.trial.prepare import load_data

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
NAMES = sorted(path.name for path in (ROOT / "examples").iterdir() if path.name != "template")  # test_template.py
LONGEST = 60  # lines of an example that are not blank
EXTRA = ("tracking=off", "trainer.threads=1")
SHORT = {"text": ("split.max_samples=300", "trainer.epochs=1")}  # whole in benchmarks/quality.py

Metrics = dict[str, float]


def sources(name: str) -> list[Path]:
    found = [*(ROOT / "examples" / name).rglob("*.py"), *(ROOT / "examples" / name).rglob("*.yaml")]
    return [path for path in found if not {"outputs", "pretrained"} & {*path.parts}]


def commands(name: str) -> list[str]:
    """Those that the page shows after `cd examples/NAME`, in their order."""
    block = re.search(rf"^```\ncd examples/{name}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert block is not None, f"docs/examples.md does not show how to run {name}"
    return block[1].replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_shown_in_full(name: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in sources(name)]
    assert sum(1 for text in texts for line in text.splitlines() if line.strip()) <= LONGEST
    assert [text for text in texts if f"\n{text}```" not in PAGE] == []


@pytest.mark.process
@pytest.mark.parametrize("name", NAMES)
def test_an_example_does_what_the_page_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for path in sources(name):
        copy = folder / path.relative_to(ROOT / "examples" / name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    monkeypatch.chdir(folder)
    found, targets = [], ""
    for command in commands(name):
        words = shlex.split(command)
        if (given := next((word for word in words[:2] if word.startswith("SWEEP_TARGETS=")), None)) is not None:
            targets = given.partition("=")[2]
        if "sweep.run" in words:
            arguments = [*words[words.index("sweep.run") + 1 :], *EXTRA, *SHORT.get(name, ())]
            done = quick(folder, *arguments, SWEEP_TARGETS=targets, PYTHONPATH=str(folder))
            assert (done.returncode, done.stderr) == (0, ""), command
            found.append({key: float(value) for key, value in re.findall(r"^  (test/\S+) +(\S+)", done.stdout, re.M)})
        elif words[0] == "python":
            done = quick(folder, *words[2:], module=words[1])
            assert (done.returncode, done.stderr) == (0, ""), command
    CHECKS[name](found, folder)


def _titanic(found: list[Metrics], folder: Path) -> None:
    """Better than a logistic regression, or at most 1 % below gradient boosting, on the same splits."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    splits = load_data(validate(compose(["experiment=titanic"], config_dir=folder))).splits
    boosted = _accuracy(HistGradientBoostingClassifier(random_state=0), splits.train, splits.test)
    linear = _accuracy(LogisticRegression(max_iter=1000), splits.train, splits.test)
    assert found[0]["test/accuracy"] >= min(boosted - 0.01, linear)


def _accuracy(model: Any, train: Part, test: Part) -> float:
    return float(np.mean(model.fit(train.x, train.y).predict(test.x) == test.y))


def _patients(found: list[Metrics], folder: Path) -> None:
    assert found[0]["test/f1"] > 0.6  # to call everybody ill has 0.33


def _demand(found: list[Metrics], folder: Path) -> None:
    assert found[0]["test/coverage"] < 0.02


def _photos(found: list[Metrics], folder: Path) -> None:
    augmented, plain = (of_one["test/accuracy"] for of_one in found)
    assert augmented > max(plain, 0.8)


def _text(found: list[Metrics], folder: Path) -> None:
    assert found[0]["test/bits_per_token"] < 6  # after a few updates; 8 without any


def _tags(found: list[Metrics], folder: Path) -> None:
    assert found[0]["test/f1"] > 0.85


def _shapes(found: list[Metrics], folder: Path) -> None:
    assert found[0]["test/iou"] > 0.9


def _finetune(found: list[Metrics], folder: Path) -> None:
    _, tuned, scratch = (of_one["test/accuracy"] for of_one in found)
    assert tuned > scratch + 0.03


def _sensors(found: list[Metrics], folder: Path) -> None:
    assert found[0]["test/loss"] < 0.5  # squared error; the heights' variance is above 5


def _callback(found: list[Metrics], folder: Path) -> None:
    (run_folder,) = (folder / "outputs" / "runs").iterdir()
    assert sorted(path.name for path in run_folder.glob("fit-*.png")) == ["fit-010.png", "fit-020.png", "fit-030.png"]
    assert "steepness" in (run_folder / "journal.jsonl").read_text()


def _gan(found: list[Metrics], folder: Path) -> None:
    """The ring's distance from one point in its middle is above 0.7."""
    assert found[0]["test/distance"] < 0.1
    (study,) = (folder / "outputs" / "studies").iterdir()
    best = load_study(study).best
    assert best is not None
    assert {*best.params} == {"generator.lr", "discriminator.lr"}
    assert best.value is not None
    assert best.value < 0.1


def _application(found: list[Metrics], folder: Path) -> None:
    """It is pruned by what it reports, MLflow has it all, and its value is that of the noise: a variance of 0.01."""
    (path,) = (folder / "outputs" / "studies").iterdir()
    study = load_study(path)
    assert {trial.state for trial in study.results} == {"complete", "pruned"}
    runs = {run.data.tags.get("trial"): run for run in mlflow_runs(folder)}
    assert len(runs) == 13, "a run for each trial, and one for the study"
    for trial in study.results:
        steps, values = recorded(StudyFolder(path).trial(trial.number))["val/loss"]
        run = runs[str(trial.number)]
        assert mlflow_curve(folder, run.info.run_id, "val/loss") == (steps, values)
        assert {"lr": str(trial.params["lr"]), "data.n": "200"}.items() <= run.data.params.items()
        assert run.data.tags["command"].startswith("python train.py hparams_search=rates lr=")
        if trial.state == "complete":
            assert (len(steps), trial.value) == (60, min(values))
        else:
            assert len(steps) < 60
    assert study.value is not None
    assert study.value < 0.05


def _spirals(found: list[Metrics], folder: Path) -> None:
    assert found[0]["test/accuracy"] > 0.9
    (study,) = (folder / "outputs" / "studies").iterdir()
    states = {trial.state for trial in load_study(study).results}
    assert "complete" in states
    assert states <= {"complete", "pruned"}


CHECKS = {
    "titanic": _titanic,
    "patients": _patients,
    "demand": _demand,
    "photos": _photos,
    "text": _text,
    "tags": _tags,
    "shapes": _shapes,
    "finetune": _finetune,
    "sensors": _sensors,
    "callback": _callback,
    "gan": _gan,
    "spirals": _spirals,
    "application": _application,
}
