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
import numpy as np
import optuna
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import QuotedString
from hydra.core.utils import JobRuntime
from optuna.distributions import FloatDistribution, IntDistribution
from processes import quick
from stores import Study
from waiting import wait_until

import sweep
from sweep import (
    ConfigError,
    compose,
    load_study,
    run_comparison,
    run_lr_range,
    run_study,
    run_trial,
    stop_study,
    write_report,
)
from sweep.comparison.comparison import NothingToCompare
from sweep.search.ranges import distribution_of, parse_override, sweep_override
from sweep.study.resuming import recorded_call
from sweep.study.trial_result import curves_of
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
    assert [trial.params for trial in other.results] == [{"optimizer.lr": 0.01}, {"optimizer.lr": 0.1}]
    assert [trial.number for trial in study.results] == [0, 1, 2]
    assert {trial.state for trial in study.results} == {"complete"}
    assert study.best is not None
    assert study.value == study.best.value == min(trial.value or 9.0 for trial in study.results)
    assert study.optuna.best_value == study.value

    more = run_study(SMALL, search, n_trials=4, **FEW)
    assert more.results[:3] == study.results
    assert len(more.results) == 4
    assert capfd.readouterr() == ("", "")

    start = journal.last_of(RunFolder(more.folder).journal, "start")
    assert start is not None
    command = shlex.split(start["tags"]["command"])
    done = quick(tmp_path, *command[3:])
    assert done.returncode == 0, done.stderr
    assert f"study {study.name}: resuming, 4 of 4 trials are done" in done.stdout


_SEARCH = """# @package _global_
hydra:
  sweeper:
    params: {model.widths: "[8],[16]", optimizer: "choice(sgd, adam)"}
search: {model: "mlp,linear", scheduler: "cosine,step"}
"""


def test_groups_and_the_stock_sweepers_params_are_searched_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(_SEARCH)
    base = [*TINY, "experiment=mine", "optimizer=sgd"]
    study = run_study(base, **FEW, config_dir=tmp_path, n_trials=6)
    assert {*study.results[0].params} >= {"model", "scheduler"}
    widths = {str(trial.params.get("model.widths")) for trial in study.results if trial.params["model"] == "mlp"}
    assert widths <= {"[8]", "[16]"}
    assert all("optimizer" not in trial.params for trial in study.results), "the command line comes first"
    assert len(load_study(study.folder).resume(n_trials=7, config_dir=tmp_path).results) == 7
    with pytest.raises(ConfigError, match=r"^hydra.sweeper.params: must map keys to ranges"):
        run_study([*TINY, "hydra.sweeper.params=5"], **FEW)


def test_a_study_that_is_read_is_a_copy(tmp_path: Path) -> None:
    study = run_study(SMALL, n_trials=2, study_name="s", **FEW)
    for read in (load_study("s"), load_study(study.folder), load_study(f"{tmp_path}/outputs/studies/s")):
        assert (read.name, read.results, read.best, read.value) == ("s", study.results, study.best, study.value)
    with pytest.raises(AttributeError):
        read.name = "t"  # type: ignore[misc]
    read.optuna.enqueue_trial({})
    assert len(load_study("s").optuna.trials) == 2


def test_a_study_is_a_table_and_its_best_trial_has_what_it_left() -> None:
    tried = {"scheduler.max_lr": np.float64(0.02)}  # as a table of pandas has numbers
    study = run_study([*SMALL, "optimizer=sgd,adam"], n_trials=np.int64(3), enqueue=[tried], study_name="s", **FEW)
    assert study.results[1].params["scheduler.max_lr"] == 0.02
    table = study.trials()
    assert table.number.tolist() == [0, 1, 2]
    assert table.state.tolist() == ["complete"] * 3
    assert table.value.tolist() == [trial.value for trial in study.results]
    assert table["params.optimizer"].tolist() == [trial.params["optimizer"] for trial in study.results]
    assert (table.ended > table.began).all()
    assert (table.duration_s > 0).all()
    assert table.mlflow_run_id.isna().all()
    best = study.best
    assert best is not None
    assert str(best.folder) == table.folder[best.number] == str(study.folder / "trials" / str(best.number))
    assert best.curves["val/loss"].values.min() == best.value
    assert best.runs == [best.folder]
    again = run_trial(compose([*best.overrides, "output_dir=again"]))
    assert again.history["val/loss"].values.tolist() == best.curves["val/loss"].values.tolist()
    assert best.load_model().predict([[0.5]]).shape == (1,)
    html = study._repr_html_()
    assert "study s, complete: 3 of 3 trials: 3 complete" in html
    assert f"{study.value:.6g}" in html


def test_a_study_of_several_seeds_has_a_run_for_each() -> None:
    study = run_study(SMALL, n_trials=2, seeds=2, study_name="s", **FEW)
    (first, _) = study.results
    assert first.runs == [first.folder / "seed-0", first.folder / "seed-1"]
    assert "seed" not in " ".join(first.overrides)
    lowest = [curves_of(run)["val/loss"].values.min() for run in first.runs]
    assert first.value == pytest.approx(sum(lowest) / 2)


def test_a_study_is_resumed_by_its_result_by_its_record_and_under_its_name() -> None:
    """Whatever the settings are: the name does not follow them."""
    study = run_study(SMALL, {"optimizer": ["sgd", "adam"]}, n_trials=1, **FEW)
    more = study.resume(n_trials=2)
    assert (more.name, len(more.results), len(study.results)) == (study.name, 2, 1)
    loaded = load_study(study.name).resume(n_trials=3)
    assert (loaded.name, loaded.results[:2]) == (study.name, more.results)
    assert len(loaded.resume(n_trials=4, pack=2).results) == 4
    assert run_study(SMALL, {"optimizer": ["sgd", "adam"]}, n_trials=4, **FEW).results[:3] == loaded.results


@pytest.mark.parametrize(
    ("recorded", "problem"),
    [
        ("hydra/launcher=joblib", r"study: its command sets hydra/launcher=joblib, which only your own call may"),
        ("tracking.uri=http://elsewhere", r"study: its command sets tracking.uri=http://elsewhere, which only"),
        ("hydra.searchpath=[file:///elsewhere]", r"study: its options come from another folder"),
        ("data.n=${oc.env:HOME}", r"study: its configuration holds a resolver"),
        ("hydra.sweeper.study_name=${oc.env:HOME}", None),
        ("output_dir=/elsewhere", None),
    ],
)
def test_a_record_decides_neither_where_results_go_nor_what_is_started(
    recorded: str, problem: str | None, tmp_path: Path
) -> None:
    command = shlex.join(["python", "-m", "sweep.run", "-m", *SMALL, recorded])
    study = Study(tmp_path / "outputs", "s", tags={"kind": "study", "command": command})
    if problem is not None:
        with pytest.raises(ConfigError, match=problem):
            recorded_call(study.folder, [])
        assert recorded in recorded_call(study.folder, [recorded])
    else:
        call = recorded_call(study.folder, [])
        assert call == [f"output_dir={tmp_path}/outputs", *(o for o in SMALL)]


def test_a_study_runs_aside_and_is_stopped_and_watched(tmp_path: Path) -> None:
    """In a pack: a trial that is stopped makes room for another, and the program may use Hydra meanwhile."""
    long = ["data.n=96", "trainer.epochs=100000", *SMALL[2:]]
    running = run_study(long, n_trials=3, pack=2, study_name="s", wait=False, **FEW)
    assert running._repr_html_().startswith("<div>study s"), "a notebook shows it at once"
    assert repr(running) == "<StudyHandle of s, running>"

    def trained() -> list[int]:
        begun = (tmp_path / "outputs/studies/s/journal.jsonl").exists()
        return [t.number for t in running.study().status.running if t.epoch > 0] if begun else []

    wait_until(lambda: trained() == [0, 1])
    assert compose(["optimizer=sgd"]).optimizer._target_ == "torch.optim.SGD"
    stop_study("s", trial=0)
    wait_until(lambda: trained() == [1, 2])
    assert running.study().status.n_by_state["stopped"] == 1
    assert "running" in running._repr_html_()
    assert not running.done()
    with pytest.raises(TimeoutError):
        running.result(0.01)
    running.stop()
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        running.result()
    assert running.done()
    assert load_study("s").trials().state.tolist() == ["waiting"] * 3
    with pytest.raises(ConfigError, match=r"^trainer.epochs: must be >= 1"):
        run_study(["trainer.epochs=0"], wait=False)


def test_with_several_objectives_there_is_a_front_and_no_best() -> None:
    study = run_study(SMALL, n_trials=2, objective=["val/loss", "model/n_weights"], pruner="none", sampler="random")
    assert (study.best, study.value) == (None, None)
    assert study.best_trials
    assert all(len(trial.values) == 2 and trial.value is None for trial in study.results)


def test_it_prints_what_the_command_prints_if_it_is_asked_to(capfd: pytest.CaptureFixture[str]) -> None:
    run_study(SMALL, n_trials=1, study_name="s", show=True, **FEW)
    out, err = capfd.readouterr()
    assert re.search(r"^study s: 1 trials; in outputs/studies/s\n1/1  trial 0  ", out, re.MULTILINE)
    assert "\nstudy s: 1 of 1 trials: 1 complete\n" in out
    assert err == ""


def test_workers_may_be_processes_of_their_own() -> None:
    study = run_study(SMALL, n_trials=2, n_jobs=2, **FEW)
    assert [trial.state for trial in study.results] == ["complete", "complete"]
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
    assert len(found[0].results) == 1


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
    assert load_study("s").results == []
    assert len(run_study(long, n_trials=1, study_name="s", **FEW).results) == 1


@pytest.mark.parametrize(
    ("base", "search", "settings", "message"),
    [
        ("optimizer=adam", {}, {}, "base: must be a list of texts"),
        (["optimizer=adam", 3], {}, {}, "base: must be a list of texts, or a config of sweep.compose, got ["),
        ({"optimizer": "adam"}, {}, {}, "base: must be a list of texts, or a config of sweep.compose, got {"),
        (["optimizer=bogus"], {}, {}, "optimizer: no option 'bogus'"),
        (["trainer.epochs=0"], {}, {}, "trainer.epochs: must be >= 1"),
        ([], {"optimizer": ["sgd", "bogus"]}, {}, "optimizer: no option 'bogus'"),
        ([], {"optimizer.nope": [1, 2]}, {}, "optimizer.nope: "),
        ([], {"optimizer.lr": 0.1}, {}, "optimizer.lr: must be a text in Hydra's sweep grammar, a list or a distr"),
        ([], {"optimizer.lr": []}, {}, "optimizer.lr: must be a text in Hydra's sweep grammar, a list or a distr"),
        (["optimizer.lr=0.1"], {"optimizer.lr": [0.1, 1.0]}, {}, "optimizer.lr: is both set and searched"),
        ([], {"tracking.uri": ["a", "b"]}, {}, "tracking.uri: is not a setting of a trial"),
        (["+search.seed=range(1,9)"], {}, {}, "search.seed: has a range as a text; quote it, as in 'search.seed=\"int"),
        ([], {}, {"n_trials": 0}, "hydra.sweeper.n_trials: must be >= 1"),
        ([], {}, {"n_trials": "many"}, "hydra.sweeper.n_trials: "),
        (
            [],
            {},
            {"trials": 3},
            "hydra.sweeper.trials: is no setting of a study; if it is a key of the config, give it",
        ),
        ([], {}, {"sampler": {"_target_": "x"}}, "hydra.sweeper.sampler: must be the name of an option"),
        ([], {}, {"sampler": "bogus"}, "hydra/sweeper/sampler: no option 'bogus'"),
        ([], {}, {"dry_run": True}, "hydra.sweeper.dry_run: prints"),
        (["hydra/sweeper=basic"], {}, {}, "hydra/sweeper: is what this function does"),
        (["hydra.job.chdir=x"], {}, {}, "hydra.job.chdir: "),
        ([], {}, {"study_name": "../x"}, "hydra.sweeper.study_name: "),
        (["bounds=wide"], {}, {}, "bounds: 'wide' is unknown"),
        ([], {}, {"params": {"x": "1,2"}}, "hydra.sweeper.params: is for a command line; give these ranges as search="),
        ([], {}, {"params.x": "1,2"}, "hydra.sweeper.params: is for a command line; give these ranges as search="),
        ([], {1: [2, 3]}, {}, "search: must map config keys to ranges, such as {'lr': [0.1, 0.2]}, got {1: [2, 3]}"),
        ([], {}, {"train": print, "space": ["x"]}, "space: must map config keys to ranges, such as {'lr': [0.1, "),
        ([], {}, {"train": print, "space": {"x": []}}, "x: must be a text in Hydra's sweep grammar, a list or a"),
        ([], {}, {"enqueue": {"optimizer.lr": 0.1}}, "hydra.sweeper.enqueue: must list {key: value}, got {'optimizer"),
        ([], {"x": [1]}, {"train": print, "space": {"x": [1, 2]}}, "x: is searched twice; name it once, in search="),
    ],
    ids=str,
)
def test_a_mistake_is_an_error_that_names_its_key_and_nothing_is_printed_or_stored(
    base: Any, search: Any, settings: Any, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        run_study(base, search, **settings)
    assert str(refused.value).startswith(message)
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

    table = found.table()
    assert table.contender.tolist() == ["mlp", "linear"]
    assert table["median"].tolist() == [standing.score.median for standing in task.standings]
    assert (table.iqm_low <= table.iqm).all()
    assert found.verdict.startswith("mlp is not beaten. mlp is better than linear (")
    assert found.verdict == stored["tasks"][0]["verdict"]
    figure = found.plot()
    assert [axes.get_xlabel() for axes in figure.axes] == ["test/loss", "trials", "epoch", "learning rate, the highest"]
    assert "mlp is better than linear" in found._repr_html_()

    page = write_report(found)
    assert page == write_report("c") == write_report(found.folder) == found.folder / "report.html"
    html = page.read_text()
    assert stored["tasks"][0]["verdict"].partition(" (")[0] in html
    assert html.count('"type":"box"') == 2
    with pytest.raises(ConfigError, match=r"^trials: is for a study"):
        write_report("c", trials=[0])
    (found.folder / "comparison.yaml").write_text("name: c\ntasks: [1]\n")
    with pytest.raises(ConfigError, match=r"^comparison: .* is damaged"):
        write_report("c")

    command = shlex.split(stored["command"])
    assert command[:4] == ["python", "-m", "sweep.compare", "hydra.sweeper.n_trials=1"]
    assert command[4:] == [*shared, "model=mlp,linear", "optimizer.lr=tag(log, interval(1e-2, 1e-1))"]


def test_a_comparison_that_finds_nothing_to_compare_says_where_it_is_written() -> None:
    few = [*TINY, "compare.n_seeds=2", "compare.name=c"]
    with pytest.raises(NothingToCompare, match=r"see .*/outputs/comparisons/c"):
        run_comparison(few, {"model": ["linear", "convnet"]}, n_trials=1)
    with pytest.raises(ConfigError, match="compare: needs two contenders"):
        run_comparison(few, {"model": ["linear"]})
    with pytest.raises(ConfigError, match="compare: needs two contenders"):
        run_comparison({"model": ["linear"]})
    with pytest.raises(ConfigError, match="contenders: must map config keys to ranges"):
        run_comparison(few, {1: ["linear"]})  # pyright: ignore[reportArgumentType]


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
    assert len(names["study"].results) == len(names["table"]) == 4
    assert names["page"] == names["study"].folder / "report.html"
    assert names["page"].is_file()
    assert names["compared"].winner is None
    assert capfd.readouterr().err == ""


def test_the_snippets_about_studies_run_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    page = README.parent / "docs" / "studies.md"
    section = page.read_text(encoding="utf-8").partition("\n## From Python\n")[2].partition("\n## ")[0]
    names: dict[str, Any] = {}
    for snippet in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(compile(snippet, str(page), "exec"), names)
    assert len(load_study("from-python").results) == 7
    assert names["running"].done()
    assert len(names["study"].results) == 4
    assert capfd.readouterr().err == ""


def test_the_functions_are_those_of_the_package() -> None:
    assert {
        name
        for name in sweep.__all__
        if name.startswith(("run_", "load_", "write_", "list_", "stop_", "retry_", "remove_", "move_"))
    } == {
        *("run_study", "load_study", "run_comparison", "run_lr_range", "run_trial", "write_report", "load_model"),
        *("list_studies", "stop_study", "retry_trials", "remove_study", "move_outputs"),
    }
    assert all(getattr(sweep, name) is not None for name in sweep.__all__)
    assert run_trial is sweep.run_trial
