"""Every command that is printed works as it stands, pasted into a shell: for odd names of options and folders too."""

import html
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from processes import empty_store, environment, error_line, quick, quick_start
from waiting import wait_until

from sweep.config.overrides import option, setting
from sweep.tracking.folders import StudyFolder

pytestmark = pytest.mark.process  # commands, servers, a browser

OUT = 'my out\'s "1", größe=$HOME'
CONF = "conf 'a', \"b\" \\ $HOME"
FIRST, SECOND = "a b", 'it\'s, "x"=1'
ONE = "hydra.sweeper.n_jobs=1"
SMALL = ("experiment=debug", "trainer.epochs=1", "scheduler=constant")


@pytest.fixture(scope="module")
def cwd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two optimizers of odd names, in a folder of an odd name."""
    cwd = tmp_path_factory.mktemp("odd")
    (cwd / CONF / "optimizer").mkdir(parents=True)
    for name in (FIRST, SECOND):
        (cwd / CONF / "optimizer" / f"{name}.yaml").write_text("_target_: torch.optim.SGD\nlr: 0.1\n")
    return cwd


def given(*overrides: str) -> list[str]:
    return ["--config-dir", CONF, *SMALL, setting("output_dir", OUT), *overrides]


def both() -> str:
    return f"{option('optimizer', FIRST)},{option('', SECOND)[1:]}"


def arguments_of(cwd: Path, line: str) -> list[str]:
    """MLFLOW_TRACKING_URI, and the words of a command, as a shell splits it."""
    hear = '{ printf \'%s\\0\' "$MLFLOW_TRACKING_URI" "$@"; }'
    script = f"python() {hear}\nmlflow() {hear}\n{line}"
    said = subprocess.run(["sh", "-c", script], cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")
    return said.stdout.split("\0")[:-1]


def typed(cwd: Path, line: str) -> subprocess.CompletedProcess[str]:
    """What becomes of a command of `python -m`."""
    uri, m, module, *words = arguments_of(cwd, line)
    assert m == "-m"
    changes: Any = {"MLFLOW_TRACKING_URI": uri} if uri else {}
    return quick(cwd, *words, module=module, **changes)


def works(cwd: Path, line: str) -> str:
    """What the command shows, which must end well."""
    done = typed(cwd, line)
    assert (done.returncode, done.stderr) == (0, ""), line
    return done.stdout


def after(mark: str, text: str) -> str:
    (line,) = re.findall(rf"{re.escape(mark)} +(.*)$", text, re.MULTILINE)
    return line


@pytest.fixture(scope="module")
def studied(cwd: Path) -> tuple[str, StudyFolder]:
    """What a study in a storage elsewhere shows, and its folder."""
    storage = str(cwd / "the study's log, $1")
    own = (setting("hydra.sweeper.storage", storage), "hydra.sweeper.n_trials=2", "hydra.sweeper.study_name='s,1'", ONE)
    done = quick(cwd, "-m", *given(both(), "optimizer.lr=interval(0.01,0.1)", *own))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, StudyFolder(cwd / OUT / "studies" / "s,1")


def test_the_commands_of_a_study_and_of_its_page(cwd: Path, studied: tuple[str, StudyFolder]) -> None:
    shown, folder = studied
    page, again = after("See it as page:", shown), after("Train it again:", shown)
    works(cwd, page)
    commands = [html.unescape(command) for command in re.findall("<pre>(python .*?)</pre>", folder.report.read_text())]
    assert commands[0] == again
    for command in commands[:2]:
        assert "best val/loss" in works(cwd, command)
    assert "resuming, 2 of 2 trials are done" in works(cwd, commands[2])
    store = arguments_of(cwd, after("Compare trials:", shown))[-1]
    assert MlflowClient(store).get_experiment_by_name("debug") is not None


def test_what_a_refusal_of_somebody_elses_settings_asks_for(cwd: Path, studied: tuple[str, StudyFolder]) -> None:
    """To be added to the command that was refused: a storage, and a folder of options."""
    shown, _ = studied
    page, again = after("See it as page:", shown), after("Train it again:", shown)
    for command, key, refuse in (
        (page, "give it:", re.compile(r"--storage \S+.*1' -?")),
        (again, "add", re.compile(r"'hydra\.searchpath=.*$")),
    ):
        without = refuse.sub("", command)
        assert without != command
        refused = typed(cwd, without)
        assert refused.returncode == 2
        works(cwd, f"{without} {after(key, error_line(refused))}")


def test_the_commands_after_a_range_test(cwd: Path) -> None:
    text = setting("experiment_name", "a=b, 'c' ${seed} $1")
    short = ("lr_range.n_updates=80", "lr_range.n_seeds=2", "tracking=off", option("optimizer", SECOND), text)
    done = quick(cwd, *given(*short, "model.widths=[8]"), module="sweep.lr_range")
    assert (done.returncode, done.stderr) == (0, "")
    assert "best val/loss" in works(cwd, after("Train with it:", done.stdout))
    study = f"{after('Search around it:', done.stdout)} hydra.sweeper.n_trials=1 {ONE}"
    assert "1 of 1 trials: 1 complete" in works(cwd, study)


def test_the_command_of_a_comparison(cwd: Path) -> None:
    small = ("compare.retune=false", "compare.n_seeds=2", "hydra.sweeper.n_trials=1", ONE, "tracking=off")
    done = quick(cwd, *given(both(), *small, "compare.name='c,1'"), module="sweep.compare")
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load((cwd / OUT / "comparisons" / "c,1" / "comparison.yaml").read_text())
    assert list(found["tasks"][0]["contenders"]) == [FIRST, SECOND]
    shown = works(cwd, found["command"])
    assert shown.count("done before") == 6
    assert shown.splitlines()[-1] == done.stdout.splitlines()[-1]


def test_the_commands_of_a_run_that_was_stopped_and_not_sent(cwd: Path) -> None:
    """Its experiment was deleted in MLflow, in a store that only its command names."""
    store = cwd / "it's a store, $1"
    shutil.copy(empty_store(), store)
    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.create_experiment("debug", str(cwd / "artifacts"))
    client.delete_experiment(experiment)
    sent = ("trainer.epochs=100", setting("tracking.uri", f"sqlite:///{store}"))
    out_dir = f"{OUT}, stopped"
    own = (option("optimizer", SECOND), *sent, setting("output_dir", out_dir))
    runs = cwd / out_dir / "runs"
    with quick_start(cwd, *given(*own)) as process:
        wait_until(lambda: [*runs.glob("*/checkpoint.pt")], process)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
    assert process.returncode == 130
    resume, sync = after("resume it with:", out), after("later:", out)
    assert resume.startswith("MLFLOW_TRACKING_URI=")
    (folder,) = runs.iterdir()
    taken = quick(cwd, *given(*own, setting("hydra.run.dir", str(folder))))
    assert resume.endswith(after("continue it with:", error_line(taken)))
    client.restore_experiment(experiment)
    assert "best val/loss" in works(cwd, resume)
    assert "1 of 1 tracked runs" in works(cwd, sync)


@pytest.mark.parametrize("study", [False, True])
def test_the_command_after_a_full_disk(cwd: Path, study: bool) -> None:
    own = ["-m", *given(option("optimizer", FIRST), "hydra.sweeper.n_trials=1", ONE)] if study else given()
    with quick_start(cwd, *own, "tracking=off", setting("output_dir", f"{OUT}, full {study}")) as process:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (12_000, 12_000))
        _, err = process.communicate()
    assert process.returncode == 1, err
    assert "best" in works(cwd, after("resume it with:", err))


def test_a_run_that_lies_elsewhere_asks_for_its_output_dir(cwd: Path) -> None:
    """As it does once its folder is moved. What is printed is to be added to the command."""
    folder = cwd / "it's, here"
    own = given("tracking=off", setting("hydra.run.dir", str(folder)))
    with quick_start(cwd, *own, "trainer.epochs=100") as process:
        wait_until((folder / "checkpoint.pt").exists, process)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
    refused = typed(cwd, after("resume it with:", out))
    assert refused.returncode == 2
    works(cwd, f"{after('resume it with:', out)} {after('if you trust that, add', error_line(refused))}")
