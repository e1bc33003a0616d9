"""Every command and every file that README and docs show, run as it stands, but for fewer epochs and trials."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from processes import quick
from sklearn.datasets import load_diabetes

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")) if p.stem != "examples"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"(?:# @package \w+\n)?# ([\w/]+\.(py|yaml))\n")  # how a block with a file begins
COMMAND = re.compile(r"^(?:\$ )?((?:[A-Z_]+='\S+' )*)python -m (sweep\.\w+) ?(.*)$")
ELSEWHERE = ("submitit_slurm", "hydra/launcher=ray", "db.example", "torchvision")  # a cluster, packages, a server
STUDY = re.compile(
    r"(?<=from_study=)[\w+-]+|(?<=sweep\.report )[\w+-]+|(?<=sweep\.studies show )[\w+-]+"
    r"|(?<=sweep\.studies export )[\w+-]+|(?<=sweep\.studies retry )[\w+-]+"
)
FEWER = {
    "sweep.run": ["trainer.epochs=2", "tracking=off"],
    "sweep.lr_range": ["lr_range.n_seeds=2"],
    "sweep.compare": [
        *("compare.n_seeds=2", "compare.retune=false", "hydra.sweeper.n_trials=2", "trainer.epochs=2", "tracking=off"),
    ],
    "sweep.report": [],
    "sweep.studies": [],
    "sweep.export": [],
}


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """The language and the text of each block of code."""
    yield from BLOCK.findall((ROOT / page).read_text())


def commands(page: str) -> list[str]:
    """Each with its environment and its module first, as in `SWEEP_TARGETS='mypkg.*' sweep.run optimizer=adam`."""
    found = []
    for language, text in blocks(page):
        for line in text.replace("\\\n", " ").splitlines() if not language else ():
            if (command := COMMAND.match(line)) and not any(name in line for name in ELSEWHERE):
                environment, module, arguments = command.groups()
                found.append(f"{environment}{module} {arguments}".strip())
    return found


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages speak of: their own, and a reader's tables, text and images."""
    folder = tmp_path_factory.mktemp("workshop")
    for page in PAGES:
        for language, text in blocks(page):
            if language in ("python", "yaml") and (name := FILE.match(text)):
                path = folder / name[1]
                if not name[1].startswith("conf/"):  # which is there
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(text)
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(300, 3)), columns=["area", "rooms", "age"])
    table.assign(price=table.area * 2 + table.rooms).to_csv(folder / "houses.csv", index=False)
    table.assign(kind=np.where(table.area > 0, "round", "flat")).to_parquet(folder / "cells.parquet", index=False)
    passengers = pd.DataFrame({"survived": np.arange(200) % 2, "name": [f"p{i}" for i in range(200)], "ticket": "T1"})
    passengers["age"] = np.where(np.arange(200) % 9 == 0, np.nan, rng.normal(30, 9, 200))
    passengers.assign(sex=rng.choice(["m", "f"], 200)).to_csv(folder / "passengers.csv", index=False)
    (folder / "book.txt").write_text((ROOT / "README.md").read_text())
    for kind in ("cat", "dog"):
        (folder / "pets" / kind).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(256, size=(20 + i, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pets" / kind / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def ran() -> set[str]:
    """The commands that have been run, of any page: each is run once."""
    return set()


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_the_commands_of_a_page_run(page: str, workshop: Path, ran: set[str]) -> None:
    for command in {" ".join(shlex.split(c, comments=True)): c for c in commands(page)}.values():
        if command in ran:
            continue
        ran.add(command)
        studies = workshop / "outputs" / "studies"
        made = sorted((path for path in studies.glob("*") if "+" in path.name), key=lambda path: path.stat().st_mtime)
        words = shlex.split(STUDY.sub(made[-1].name, command) if made else command, comments=True)
        n = next(i for i, word in enumerate(words) if word.startswith("sweep."))
        module, *arguments = words[n:]
        given = dict(word.split("=", 1) for word in words[:n])
        fewer = list(FEWER[module])
        if module == "sweep.run" and "-m" in arguments and "hydra/sweeper=basic" not in arguments:
            fewer.append("hydra.sweeper.n_trials=8")
        done = quick(
            *(workshop, *arguments, *fewer),
            module=module,
            SWEEP_TARGETS=given.get("SWEEP_TARGETS", "mypkg.*"),
            PYTHONPATH=str(workshop),
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"


def test_no_command_is_overlooked() -> None:
    """What is run is what is shown: lines of other forms are none of sweep's commands."""
    for page in PAGES:
        text = "".join(text.replace("\\\n", " ") for language, text in blocks(page) if not language)
        shown = re.findall(r"^(?:\$ )?(?:\S+=\S+ )*python3? -m sweep.*$", text, re.MULTILINE)
        left_out = [line for line in shown if any(name in line for name in ELSEWHERE)]
        assert len(commands(page)) == len(shown) - len(left_out), page


@pytest.fixture
def _tracking_uri_of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mlflow.set_tracking_uri` sets both, for good; a value put back through it would count before any environment."""
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")


@pytest.mark.usefixtures("_tracking_uri_of_this_test")
def test_the_python_of_the_pages_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for blocks that are files. tests/commands/test_api.py runs those of README and docs/studies.md."""
    for arguments in (
        ("data=diabetes", "hydra.run.dir=outputs/runs/mine", "trainer.epochs=1"),
        ("-m", "trainer.epochs=1", "tracking=off", "hydra.sweeper.study_name=NAME", "hydra.sweeper.n_trials=1"),
    ):
        assert quick(tmp_path, *arguments).returncode == 0
    (run,) = mlflow.MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db").search_runs(["1"])
    monkeypatch.chdir(tmp_path)
    measured, _ = load_diabetes(return_X_y=True, as_frame=True)
    for page in PAGES:
        for language, text in blocks(page) if page not in ("README.md", "docs/studies.md") else ():
            if language == "python" and not FILE.match(text):
                exec(compile(text.replace("<run id>", run.info.run_id), page, "exec"), {"frame": measured})
