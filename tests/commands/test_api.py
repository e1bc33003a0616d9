"""Studies, comparisons, range tests and reports from Python: real ones, in this process, which they leave as it was."""

import logging
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import optuna
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import QuotedString
from hydra.core.utils import JobRuntime
from optuna.distributions import FloatDistribution, IntDistribution
from processes import quick
from waiting import wait_until

import sweep
from sweep import ConfigError, compose, load_study, run_comparison, run_lr_range, run_study, run_trial, write_report
from sweep.comparison.comparison import NothingToCompare
from sweep.search.ranges import distribution_of, parse_override, sweep_override
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.utils.errors import Interrupted

pytestmark = pytest.mark.process  # commands, servers, a browser

README = Path(__file__).parents[2] / "README.md"
TINY = ["data.n=96", "trainer.epochs=2", "trainer.batch_size=16", "tracking=off"]
SMALL = [*TINY, "model.widths=[8]"]
FEW: dict[str, Any] = {"sampler": "random", "pruner": "none"}


_OF_OTHERS = ("PYTEST_", "TORCHINDUCTOR_", "KMP_")  # what torch sets as it is imported, and joblib


def _state() -> dict[str, Any]:
    """What a program shares with what it calls."""
    root = logging.getLogger()
    return {
        "Hydra": (
            GlobalHydra.instance().is_initialized(),
            HydraConfig.initialized(),
            JobRuntime.instance().get("name"),
        ),
        "signals": {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)},
        "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "place": (os.getcwd(), sys.argv),
        "environment": {key: value for key, value in os.environ.items() if not key.startswith(_OF_OTHERS)},
        "logging": (root.handlers[:], root.level, logging.getLogRecordFactory(), optuna.logging.get_verbosity()),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
    }


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = _state()
    yield
    assert _state() == before


# Studies


def test_a_study_from_python_is_that_of_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two studies in turn; the first goes on twice, here and as its record says."""
    search = {"optimizer": ["sgd", "adam"]}
    study = run_study(SMALL, search, n_trials=3, **FEW)
    other = run_study(compose([*SMALL, "scheduler=constant"]), {"optimizer.lr": "0.01,0.1"}, sampler="grid")
    assert (tmp_path / "outputs" / "studies") == study.folder.parent == other.folder.parent
    assert [trial.params for trial in other.trials] == [{"optimizer.lr": 0.01}, {"optimizer.lr": 0.1}]
    assert [trial.number for trial in study.trials] == [0, 1, 2]
    assert {trial.state for trial in study.trials} == {"complete"}
    assert study.best is not None
    assert study.value == study.best.value == min(trial.value or 9.0 for trial in study.trials)
    assert study.optuna.best_value == study.value

    more = run_study(SMALL, search, n_trials=4, **FEW)
    assert more.trials[:3] == study.trials
    assert len(more.trials) == 4
    assert capfd.readouterr() == ("", "")

    start = journal.last_of(RunFolder(more.folder).journal, "start")
    assert start is not None
    command = shlex.split(start["tags"]["command"])
    done = quick(tmp_path, *command[3:])
    assert done.returncode == 0, done.stderr
    assert f"study {study.name}: resuming, 4 of 4 trials are done" in done.stdout


def test_a_study_that_is_read_is_a_copy(tmp_path: Path) -> None:
    study = run_study(SMALL, n_trials=2, study_name="s", **FEW)
    for read in (load_study("s"), load_study(study.folder), load_study(f"{tmp_path}/outputs/studies/s")):
        assert (read.name, read.trials, read.best, read.value) == ("s", study.trials, study.best, study.value)
    with pytest.raises(AttributeError):
        read.name = "t"  # type: ignore[misc]
    read.optuna.enqueue_trial({})
    assert len(load_study("s").optuna.trials) == 2


def test_with_several_objectives_there_is_a_front_and_no_best() -> None:
    study = run_study(SMALL, n_trials=2, objective=["val/loss", "model/n_weights"], pruner="none", sampler="random")
    assert (study.best, study.value) == (None, None)
    assert study.best_trials
    assert all(len(trial.values) == 2 and trial.value is None for trial in study.trials)


def test_it_prints_what_the_command_prints_if_it_is_asked_to(capfd: pytest.CaptureFixture[str]) -> None:
    run_study(SMALL, n_trials=1, study_name="s", show=True, **FEW)
    out, err = capfd.readouterr()
    assert re.search(r"^study s: 1 trials; in outputs/studies/s\n1/1  trial 0  ", out, re.MULTILINE)
    assert "\nstudy s: 1 of 1 trials: 1 complete\n" in out
    assert err == ""


def test_workers_may_be_processes_of_their_own() -> None:
    study = run_study(SMALL, n_trials=2, n_jobs=2, **FEW)
    assert [trial.state for trial in study.trials] == ["complete", "complete"]
    assert list(study.folder.glob("workers/*-1"))


def test_a_study_in_a_thread_and_in_a_program_with_hydra_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    found = []
    with hydra.initialize_config_dir(str(tmp_path), job_name="mine"):
        thread = threading.Thread(target=lambda: found.append(run_study(SMALL, n_trials=1, **FEW)))
        thread.start()
        thread.join()
        assert hydra.compose("mine", ["a=2"]) == {"a": 2}
        assert JobRuntime.instance().get("name") == "mine"
    JobRuntime.instance().set("name", "UNKNOWN_NAME")
    assert len(found[0].trials) == 1


def test_ctrl_c_stops_a_study_after_its_checkpoint_and_the_same_call_goes_on(tmp_path: Path) -> None:
    long = [*SMALL[:1], "trainer.epochs=200", *SMALL[2:]]
    begun = tmp_path / "outputs" / "studies" / "s" / "trials" / "0" / "journal.jsonl"

    def interrupt() -> None:
        wait_until(lambda: begun.exists() and '"metrics"' in begun.read_text())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted):
        run_study(long, n_trials=1, study_name="s", **FEW)
    thread.join()
    assert load_study("s").trials == []
    assert len(run_study(long, n_trials=1, study_name="s", **FEW).trials) == 1


@pytest.mark.parametrize(
    ("base", "search", "settings", "told"),
    [
        ("optimizer=adam", {}, {}, "base: must be a list of texts"),
        (["optimizer=bogus"], {}, {}, "optimizer: no option 'bogus'"),
        (["trainer.epochs=0"], {}, {}, "trainer.epochs: must be >= 1"),
        ([], {"optimizer": ["sgd", "bogus"]}, {}, "optimizer: no option 'bogus'"),
        ([], {"optimizer.nope": [1, 2]}, {}, "optimizer.nope: "),
        ([], {"optimizer.lr": 0.1}, {}, "optimizer.lr: must be a text in Hydra's sweep grammar, a list or a distr"),
        ([], {"optimizer.lr": []}, {}, "optimizer.lr: must be a text in Hydra's sweep grammar, a list or a distr"),
        (["optimizer.lr=0.1"], {"optimizer.lr": [0.1, 1.0]}, {}, "optimizer.lr: is both set and searched"),
        ([], {"tracking.uri": ["a", "b"]}, {}, "tracking.uri: is not a setting of a trial"),
        ([], {}, {"n_trials": 0}, "hydra.sweeper.n_trials: must be >= 1"),
        ([], {}, {"n_trials": "many"}, "hydra.sweeper.n_trials: "),
        ([], {}, {"trials": 3}, "hydra.sweeper.trials: "),
        ([], {}, {"sampler": {"_target_": "x"}}, "hydra.sweeper.sampler: must be the name of an option"),
        ([], {}, {"sampler": "bogus"}, "hydra/sweeper/sampler: no option 'bogus'"),
        ([], {}, {"dry_run": True}, "hydra.sweeper.dry_run: prints"),
        (["hydra/sweeper=basic"], {}, {}, "hydra/sweeper: is what this function does"),
        (["hydra.job.chdir=x"], {}, {}, "hydra.job.chdir: "),
        ([], {}, {"study_name": "../x"}, "hydra.sweeper.study_name: "),
        (["bounds=wide"], {}, {}, "bounds: 'wide' is unknown"),
    ],
    ids=str,
)
def test_a_mistake_is_an_error_that_names_its_key_and_nothing_is_printed_or_stored(
    base: Any, search: Any, settings: Any, told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        run_study(base, search, **settings)
    assert str(refused.value).startswith(told)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "outputs").exists()


def test_a_config_that_was_edited_is_refused() -> None:
    cfg = compose(SMALL)
    cfg.trainer.epochs = 3
    with pytest.raises(ConfigError, match="base: was edited since it was composed"):
        run_study(cfg)


@pytest.mark.parametrize("study", ["nope", Path("outputs/studies/nope"), Path("elsewhere")], ids=str)
def test_a_study_that_is_not_there_is_an_error(study: str | Path, tmp_path: Path) -> None:
    for read in (load_study, write_report):
        with pytest.raises(ConfigError, match=r"^study: "):
            read(study)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "distribution",
    [
        IntDistribution(1, 9, step=2),
        IntDistribution(1, 64, log=True),
        FloatDistribution(1e-5, 1e-1, log=True),
        FloatDistribution(0, 1),
        FloatDistribution(0.1, 0.5, step=0.1),
        FloatDistribution(1e-7, 3e-7, step=1e-7),
        FloatDistribution(1, 3, step=1),
    ],
    ids=str,
)
def test_a_distribution_is_recorded_as_a_range_that_is_the_same(distribution: Any) -> None:
    text = sweep_override("key", distribution)
    assert distribution_of("key", parse_override(text, "key")) == distribution


@pytest.mark.parametrize(
    "choices", [[None, "a,b", "1e3", "choice(x)", "${x}", "it's"], [[8], [16, 16]], [1.5], ["sgd"]], ids=str
)
def test_choices_are_recorded_as_they_are(choices: list[Any]) -> None:
    sweep_of: Any = parse_override(sweep_override("key", choices), "key").value()
    assert [choice.text if isinstance(choice, QuotedString) else choice for choice in sweep_of.list] == choices


# Comparisons, range tests, reports, runs


def test_a_comparison_returns_what_it_judged(capfd: pytest.CaptureFixture[str]) -> None:
    """A line cannot follow a sine."""
    shared = ["data.n=400", "trainer.epochs=6", "trainer.batch_size=16", "scheduler=constant", "tracking=off"]
    shared += ["compare.name=c", "compare.n_seeds=6"]
    contenders = {"model": ["mlp", "linear"], "optimizer.lr": "tag(log, interval(1e-2, 1e-1))"}
    found = run_comparison(shared, contenders, n_trials=1)
    assert capfd.readouterr() == ("", "")
    (task,) = found.tasks
    assert (found.name, found.winner, task.winner) == ("c", "mlp", "mlp")
    assert [standing.name for standing in task.standings] == ["mlp", "linear"]
    (test,) = task.tests
    assert (test.better, test.adjusted < 0.05) == (0, True)
    assert [len(entry.trials) for entry in found.entries] == [6, 6]
    assert all(len(entry.runs) == len(entry.untuned) == 6 and all(entry.runs) for entry in found.entries)
    stored = yaml.safe_load((found.folder / "comparison.yaml").read_text())
    assert stored["tasks"][0]["contenders"]["mlp"]["scores"]["by_seed"] == [*task.standings[0].score.costs]

    command = shlex.split(stored["command"])
    assert command[:4] == ["python", "-m", "sweep.compare", "hydra.sweeper.n_trials=1"]
    assert command[4:] == [*shared, "model=mlp,linear", "optimizer.lr=tag(log, interval(1e-2, 1e-1))"]


def test_a_comparison_that_finds_nothing_to_compare_says_where_it_is_written() -> None:
    few = [*TINY, "compare.n_seeds=2", "compare.name=c"]
    with pytest.raises(NothingToCompare, match=r"see .*/outputs/comparisons/c"):
        run_comparison(few, {"model": ["linear", "convnet"]}, n_trials=1)
    with pytest.raises(ConfigError, match="compare: needs two contenders"):
        run_comparison(few, {"model": ["linear"]})


def test_a_range_test_returns_its_curve_and_what_it_suggests(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quickly = ["data.n=200", "model.widths=[8]", "trainer.batch_size=32", "lr_range.n_updates=80", "lr_range.n_seeds=3"]
    found = run_lr_range([*quickly, "optimizer=sgd"])
    assert list(tmp_path.iterdir()) == []
    assert list(found.bounds) == found.keys == ["scheduler.base_lr", "scheduler.max_lr"]
    assert 1e-6 < found.bounds["scheduler.base_lr"].value < found.bounds["scheduler.max_lr"].value < 10
    assert len(found.ramps) == 3
    assert len(found.ramps[0].lrs) == len(found.ramps[0].losses) > 10
    assert "the averaged loss has made" in found.reason
    assert "optimizer=sgd" in found.commands["run"]

    again = run_lr_range(compose([*quickly, "optimizer=sgd"]), folder="kept")
    assert again.suggestion == found.suggestion
    stored = yaml.safe_load(Path("kept/lr_range.yaml").read_text())
    assert stored["suggestion"]["scheduler.max_lr"]["value"] == found.bounds["scheduler.max_lr"].value
    assert Path("kept/lr_range.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"^folder: "):
        run_lr_range([*quickly, "optimizer=sgd"], folder="kept")
    with pytest.raises(ConfigError, match=r"^lr_range.max_lr: .* raise it$"):
        run_lr_range([*quickly, "lr_range.max_lr=0.03"])
    assert capfd.readouterr() == ("", "")


def test_a_report_is_written_where_it_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_study(SMALL, n_trials=2, study_name="s", **FEW)
    page = write_report("s", page="pages/it.html", trials=[1])
    assert page == tmp_path / "pages" / "it.html"
    assert "trial 1" in page.read_text()
    assert (tmp_path / "pages" / "plots" / "history.png").exists()
    with pytest.raises(ConfigError, match=r"^trials: 's' has no trial 7"):
        write_report("s", trials=[7])
    assert capfd.readouterr() == ("", "")


def test_the_snippet_of_the_readme_runs_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    section = README.read_text(encoding="utf-8").partition("\n## From Python\n")[2].partition("\n## ")[0]
    (snippet,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(snippet, str(README), "exec"), names)
    assert len(names["study"].trials) == len(names["table"]) == 4
    assert names["page"] == names["study"].folder / "report.html"
    assert names["page"].is_file()
    assert names["compared"].winner is None
    assert capfd.readouterr().err == ""


def test_the_functions_are_those_of_the_package() -> None:
    assert {name for name in sweep.__all__ if name.startswith(("run_", "load_", "write_"))} == {
        *("run_study", "load_study", "run_comparison", "run_lr_range", "run_trial", "write_report", "load_model")
    }
    assert all(getattr(sweep, name) is not None for name in sweep.__all__)
    assert run_trial is sweep.run_trial
