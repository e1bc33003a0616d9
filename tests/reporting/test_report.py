"""`python -m sweep.report` on a study that was run, and its page and MLflow's in a real browser."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pytest
from browser import (
    CHROMIUM,
    DESKTOP,
    PHONE,
    ROOT,
    Tab,
    compare,
    draw_metrics,
    drawn_curves,
    expand,
    make_ui,
    open_experiment,
    run_names,
)
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from processes import client, make_store, mlflow_runs, quick, run
from stores import Study
from study_folders import folder_of
from waiting import wait_until

from sweep import report
from sweep.execution.queue import PROBLEM, STOPPED
from sweep.reporting.study_page import Report
from sweep.storage.storage import open_storage
from sweep.study.identity import IDENTITY
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder, StudyFolder

pytestmark = pytest.mark.process  # commands, servers, a browser

REPORT = (sys.executable, "-m", "sweep.report")
NAME = "seen"
EVIL = "<img src=x onerror=alert(1)>"
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium; apt-get install chromium")


class Reported(NamedTuple):
    """A study that was run, and reported. ended: when MLflow's parent run had ended before."""

    cwd: Path
    folder: StudyFolder
    done: subprocess.CompletedProcess[str]
    ended: int | None


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """10 trials of 6 epochs on two seeds, most of them pruned."""
    cwd = make_store(tmp_path_factory.mktemp("reported"))
    space = ("optimizer=sgd,adam", "experiment=debug", "trainer.epochs=6", "experiment_name=browsed")
    done = quick(
        cwd, "-m", *space, "hydra.sweeper.n_trials=10", "hydra.sweeper.seeds=2", f"hydra.sweeper.study_name={NAME}"
    )
    assert done.returncode == 0, done.stderr
    ended = parent_of(cwd).info.end_time
    (command,) = re.findall(r"^See it as page:  python -m sweep.report (.*)$", done.stdout, re.MULTILINE)
    return Reported(cwd, folder_of(cwd, NAME), run(cwd, *shlex.split(command), command=REPORT), ended)


def parent_of(cwd: Path):
    (parent,) = [found for found in mlflow_runs(cwd) if found.data.tags.get("kind") == "study"]
    return parent


def written(outputs: Path, name: str, n_trials: int = 12, storage: str | None = None, **fields: Any) -> StudyFolder:
    """A study as a controller and its workers would leave it, without training: one failed, a third pruned."""
    study = Study(outputs, name, storage=storage, **fields)
    folder = study.folder
    folder.run.config.write_text("tracking: {mlflow: false}\n")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    stored = optuna.create_study(storage=open_storage(storage, folder), study_name=name)
    stored.set_user_attr(IDENTITY, {"hydra.sweeper.objective": '["val/loss"]'})
    ranges = {"lr": FloatDistribution(1e-4, 1.0, log=True), "kind": CategoricalDistribution([EVIL, "plain"])}
    for number in range(n_trials):
        state = TrialState.FAIL if number == 2 else TrialState.PRUNED if number % 3 == 1 else TrialState.COMPLETE
        params = {"lr": 10 ** (-4 + number / 4), "kind": (EVIL, "plain")[number % 2]}
        attrs = {TrialState.FAIL: {PROBLEM: EVIL}, TrialState.PRUNED: {STOPPED: "pruned at epoch 1"}}.get(state, {})
        value = None if state == TrialState.FAIL else 1.0 + abs(number - 5)
        trial = create_trial(state=state, value=value, params=params, distributions=ranges, user_attrs=attrs)
        stored.add_trial(trial)
        study.whole_trial(number)
    study.end(folder.run)
    return folder


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A study whose choices and errors are markup."""
    folder = written(tmp_path_factory.mktemp("evil") / "outputs", "evil")
    assert report.main(["evil", "--output-dir", str(folder.path.parent.parent)]) == 0
    return folder


def test_the_command_says_where_the_page_and_the_pictures_are(reported):
    assert (reported.done.returncode, reported.done.stderr) == (0, "")
    page, plots, sent = reported.done.stdout.splitlines()
    assert page == f"Page:      {reported.folder.report}"
    assert plots.startswith(f"Plots:     {reported.folder.plots}: history.png, slices.png, curves.png, importances.png")
    assert sent == f"In MLflow: an artifact of the run {NAME} in sqlite:///{reported.cwd}/outputs/mlflow.db"


def test_the_page_is_whole_and_small(reported):
    html = reported.folder.report.read_text()
    assert len(html) < 3_000_000
    assert "https://" not in html.partition('<script type="application/gzip"')[0]
    assert not [tag for tag in ('<link rel="stylesheet', "<img", "<iframe") if tag in html]
    best = OmegaConf.load(reported.folder.best)
    assert f"python -m sweep.run from_study={NAME}" in html
    assert f"Trial {best.trial}. Training it again trains the first of its 2 seeds alone" in html
    assert shlex.join(["python", "-m", "sweep.run", *best.overrides]).replace("'", "&#39;") in html


def test_mlflow_has_the_page_and_the_pictures_and_the_study_is_as_it_was(reported):
    parent = parent_of(reported.cwd)
    (page,) = [a for a in client(reported.cwd).list_artifacts(parent.info.run_id) if a.path == "report.html"]
    assert page.file_size == reported.folder.report.stat().st_size
    plots = {a.path for a in client(reported.cwd).list_artifacts(parent.info.run_id, "plots")}
    assert plots == {f"plots/{name}.png" for name in ("curves", "history", "importances", "slices")}
    assert (parent.info.status, parent.info.end_time) == ("FINISHED", reported.ended)
    names = {a.path for a in client(reported.cwd).list_artifacts(parent.info.run_id)}
    assert names >= {"best.yaml", "optimization_results.yaml", "config.yaml"}


def test_a_report_of_chosen_trials_goes_elsewhere_and_not_to_mlflow(reported, tmp_path: Path, capsys):
    before = reported.folder.run.journal.read_bytes()
    outputs = str(reported.cwd / "outputs")
    assert report.main([NAME, "--output-dir", outputs, "--trials", "3,0", "-o", str(tmp_path / "new" / "it.html")]) == 0
    html = (tmp_path / "new" / "it.html").read_text()
    assert set(re.findall(r'"name":"trial (\d+)', html)) == {"3", "0"}
    assert (tmp_path / "new" / "plots" / "curves.png").exists()
    assert "MLflow" not in capsys.readouterr().out
    assert reported.folder.run.journal.read_bytes() == before


def test_a_report_overwrites_no_file_of_the_user(reported, tmp_path: Path, capsys):
    mine = tmp_path / "p.html.tmp"
    mine.write_text("mine")
    outputs = str(reported.cwd / "outputs")
    assert report.main([NAME, "--output-dir", outputs, "-o", str(tmp_path / "p.html")]) == 2
    message = f"error: -o: '{mine}' exists and would be overwritten; name another file\n"
    assert (capsys.readouterr().err, mine.read_text()) == (message, "mine")


BAD = {
    "unknown": (["foo"], "study: 'foo' is not below '{outputs}/studies'; choose one of: elsewhere, empty, evil"),
    "none of a name": ([".."], "study: '..' is not below '{outputs}/studies'; choose one of: elsewhere, empty, evil"),
    "none of a study without trials": (
        ["empty", "--trials", "0"],
        "trials: 'empty' has no trial 0, as it has none yet",
    ),
    "no such trial": (["evil", "--trials", "12"], "trials: 'evil' has no trial 12, only 0 to 11"),
    "no folder": (["evil", "-o", "/dev/null/x.html"], "-o: cannot write '/dev/null/x.html' ("),
    "a folder": (["evil", "-o", "{outputs}"], "-o: '{outputs}' is a folder; name a file"),
    "storage gone": (
        ["elsewhere"],
        "storage: there is no file '{outputs}/gone.db'; give --storage, the one of the study",
    ),
    "another's": (["elsewhere", "--storage", "{outputs}/studies/evil/optuna.log"], "storage: '"),
    "no storage": (["evil", "--storage", "{outputs}/nothing.log"], "storage: there is no file '{outputs}/nothing.log'"),
    "bad storage": (["evil", "--storage", "foo://x"], "storage: 'foo://x' is of an unknown kind; choose "),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_reported_is_told_in_one_line(case, evil, capsys):
    outputs = evil.path.parent.parent
    if not folder_of(outputs.parent, "elsewhere").path.exists():
        written(outputs, "elsewhere", 1, f"sqlite:///{outputs}/gone.db")
        (outputs / "gone.db").unlink()
        written(outputs, "empty", n_trials=0)
    arguments, message = BAD[case]
    capsys.readouterr()
    status = report.main([*(a.format(outputs=outputs) for a in arguments), "--output-dir", str(outputs)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: " + message.format(outputs=outputs))
    assert status == 2
    assert not (outputs / "nothing.log").exists()


def test_words_that_are_no_numbers_of_trials_are_refused(capsys):
    assert report.main(["evil", "--trials", "3,x"]) == 2
    message = "error: command line: argument --trials: '3,x' lists no numbers of trials, such as 3,7; "
    assert capsys.readouterr().err.startswith(message)


def test_a_study_kept_elsewhere_is_found_by_its_record_or_where_it_was_moved(tmp_path: Path, capsys):
    outputs = tmp_path / "outputs"
    written(outputs, "database", 4, f"sqlite:///{outputs}/studies.db")
    assert report.main(["database", "--output-dir", str(outputs)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Not in MLflow: the study's tracking is off"
    folder = written(outputs, "file", 4, str(tmp_path / "trials.log"))
    shutil.move(tmp_path / "trials.log", tmp_path / "moved.log")
    assert report.main(["file", "--output-dir", str(outputs)]) == 2
    assert f"names {tmp_path}/trials.log; if you trust that, give it: --storage" in capsys.readouterr().err
    assert report.main(["file", "--output-dir", str(outputs), "--storage", str(tmp_path / "moved.log")]) == 0
    assert folder.report.exists()


def test_a_controller_records_where_its_trials_are_kept(tmp_path: Path):
    space = ("experiment=debug", "tracking=off", "hydra.sweeper.n_trials=1", "hydra.sweeper.study_name=s")
    assert quick(tmp_path, "-m", *space, "hydra.sweeper.storage=trials.log").returncode == 0
    start = journal.first(folder_of(tmp_path, "s").run.journal, "start")
    assert start is not None
    assert start["storage"] == str(tmp_path / "trials.log")


def test_a_store_that_is_down_gets_the_page_later(tmp_path: Path, capsys, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    folder = written(tmp_path / "outputs", "s", n_trials=3, store=uri)
    folder.run.config.write_text(f"tracking: {{uri: '{uri}'}}\n")
    assert report.main(["s", "--output-dir", str(tmp_path / "outputs")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Not yet in MLflow (")
    assert last.endswith(f"later:  python -m sweep.sync {tmp_path}/outputs")
    ends = [*journal.records(folder.run.journal, "end")]
    assert ends[-1]["artifacts"] == ["report.html", "plots"]


def test_a_study_that_runs_is_reported_and_its_record_left_to_it(tmp_path: Path, capsys):
    folder = written(tmp_path / "outputs", "s", n_trials=3)
    folder.run.config.write_text("tracking: {}\n")
    before = folder.run.journal.read_bytes()
    with folder.run.lock():
        assert report.main(["s", "--output-dir", str(tmp_path / "outputs")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "MLflow gets the page when the command that runs the study ends"
    assert folder.report.exists()
    assert folder.run.journal.read_bytes() == before


def test_the_study_of_a_command_that_was_killed_stays_killed(tmp_path: Path):
    from sweep.tracking.run_recorder import add_artifacts

    study = Study(tmp_path, "s")
    add_artifacts(study.folder.run, ["report.html"])
    assert journal.status(study.folder.run.journal) == "KILLED"
    study.begin()
    assert journal.status(study.folder.run.journal) is None


def test_a_study_without_a_finished_trial_is_reported_by_its_path(tmp_path: Path, capsys):
    """One that has only begun, and one whose first trial trains, whose curves the page shows."""
    folder = written(tmp_path / "outputs", "s", n_trials=0)
    assert report.main([str(folder.path)]) == 0
    html = folder.report.read_text()
    assert "No trial is complete, so there is no best one." in html
    assert "No trial has ended yet." in html
    study = optuna.load_study(study_name="s", storage=open_storage(None, folder))
    study.ask()
    run = RunFolder(folder.trial(0).path)
    run.create()
    with journal.Journal(run.journal) as made:
        start = journal.first(folder.run.journal, "start") or {}
        names = ("uid", "name", "experiment", "output_dir", "store", "params", "tags", "parent")
        made.event("start", **{name: start.get(name) for name in names})
        made.metrics([1, 2], {"val/loss": [0.5, 0.25]})
    assert report.main([str(folder.path)]) == 0
    html = folder.report.read_text()
    assert "<dt>running or waiting</dt><dd>1</dd>" in html
    assert '"name":"trial 0"' in html
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def desktop(reported, browser) -> Tab:
    """The page in a wide window, opened once."""
    tab = Tab(browser)
    tab.open_report(reported.folder.report)
    return tab


def assert_all_is_drawn(tab: Tab, page: Path, width: int, scheme: str) -> None:
    """Every figure, in such colours, without a complaint or a request, and nothing sticks out sideways."""
    assert tab.complaints == []
    assert tab.requests == [page.as_uri()]
    script = (
        "[...document.querySelectorAll('.figure')].map((f) => [f.id, f.dataset.drawn, f.querySelectorAll('%s').length])"
    )
    drawn = tab.page.evaluate(script % "path, canvas")
    assert [name.partition("-")[0] for name, _, _ in drawn] == (
        ["history", "curves", "importances", "parallel", *["slice"] * (len(drawn) - 4)]
    )
    assert len(drawn) > 6
    assert {how for _, how, _ in drawn} == {scheme}
    assert min(n for _, _, n in drawn) > 2
    assert tab.page.evaluate("document.documentElement.scrollWidth") == width


@needs_browser
def test_the_page_draws_every_figure_and_asks_for_nothing(reported, desktop):
    assert_all_is_drawn(desktop, reported.folder.report, DESKTOP[0], "light")
    assert desktop.page.locator("h1").inner_text() == NAME


@needs_browser
def test_the_page_fits_a_phone_and_is_dark_where_the_system_is(reported, browser):
    tab = Tab(browser, PHONE, "dark")
    tab.open_report(reported.folder.report)
    assert_all_is_drawn(tab, reported.folder.report, PHONE[0], "dark")
    tab.close()


@needs_browser
def test_the_page_shows_what_the_trials_recorded(reported, desktop):
    best = OmegaConf.load(reported.folder.best)
    curves = [journal.curves(reported.folder.trial(best.trial, seed).journal)["val/loss"].values for seed in (0, 1)]
    wanted = [float(f"{sum(values) / 2:.6g}") for values in zip(*curves, strict=True)]
    shown = [(x, y) for name, x, y in drawn_curves(desktop.page) if name == f"trial {best.trial}, the best"]
    assert (list(range(1, 7)), wanted) in shown
    study = optuna.load_study(study_name=NAME, storage=open_storage(None, reported.folder))
    pruned = [t.number for t in study.trials if t.state == TrialState.PRUNED]
    assert pruned != []
    assert [x for name, x, _ in drawn_curves(desktop.page) if name == "pruned"] == [pruned]


@needs_browser
def test_a_command_is_copied_by_a_click(desktop):
    desktop.page.get_by_role("button", name="copy").first.click()
    assert desktop.page.get_by_role("button", name="copied").count() == 1
    assert desktop.page.evaluate("getSelection().toString()") == f"python -m sweep.run from_study={NAME}"


@needs_browser
def test_no_button_of_a_figure_leaves_the_page(reported, browser):
    """Every button of every mode bar is clicked; saving a picture is a download of the page's own."""
    tab = Tab(browser)
    page = tab.open_report(reported.folder.report)
    page.evaluate("{ window.open = (...given) => { (window.opened ||= []).push(given); return null; }; null }")
    others: list[object] = []
    page.context.on("page", lambda other: others.append(other))
    titles = page.evaluate(
        """async () => {
            const titles = [];
            for (const button of document.querySelectorAll(".modebar-btn")) {
                titles.push(button.dataset.title ?? button.getAttribute("href"));
                button.click();
                await new Promise((resume) => setTimeout(resume));
            }
            return titles;
        }"""
    )
    assert titles.count("Download plot as a PNG") == page.locator(".figure").count()
    assert not [title for title in titles if "loud" in title or "Share" in title or "http" in title]
    assert page.get_by_text("Plotly Cloud").count() == 0
    assert page.evaluate("window.opened ?? []") == []
    assert others == []
    assert page.url == reported.folder.report.as_uri()
    assert tab.requests == [page.url]
    tab.close()


@needs_browser
def test_light_and_dark_follow_the_system_while_the_page_is_open(desktop):
    ink = "getComputedStyle(document.querySelector('#history-0 .xtick text')).fill"
    light = desktop.page.evaluate(ink)
    desktop.page.emulate_media(color_scheme="dark")
    desktop.page.locator("#history-0[data-drawn=dark]").wait_for()
    assert desktop.page.evaluate(ink) != light


@needs_browser
def test_markup_in_choices_and_errors_stays_text(evil, browser):
    tab = Tab(browser)
    page = tab.open_report(evil.report)
    assert tab.complaints == []
    assert tab.requests == [evil.report.as_uri()]
    assert page.locator("img").count() == 0
    assert page.get_by_text(f"Trial 2 failed: {EVIL}").count() == 1
    tab.close()


@pytest.fixture(scope="module")
def ui(reported) -> Iterator[str]:
    with make_ui(reported.cwd / "outputs") as address:
        yield address


def test_the_ui_without_a_store_says_what_makes_one(tmp_path: Path):
    done = subprocess.run(["make", "ui", f"OUTPUTS={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: there is no {tmp_path}/mlflow.db yet; make run\n")


METRICS = ("val/loss", "train/loss", "lr")


@needs_browser
def test_mlflow_lists_trials_below_their_study_and_compares_their_curves(reported, ui, browser):
    tab = Tab(browser, (1400, 900))
    page = tab.page
    open_experiment(page, ui, "browsed")
    page.locator(".ag-row").get_by_role("link", name=NAME, exact=True).wait_for()
    assert (run_names(page, 0), run_names(page, 1)) == ([NAME], [])
    expand(page, NAME)
    runs = {name_of(folder): folder for folder in reported.folder.runs()}
    page.get_by_role("link", name=next(name for name in runs if name.startswith("t0-"))).first.wait_for()
    assert (run_names(page, 0), sorted(run_names(page, 1))) == ([NAME], sorted(runs))
    pair = [name for name in sorted(runs) if name.startswith("t0-")]
    assert len(pair) == 2  # one a seed
    compare(page, pair)
    draw_metrics(page, *METRICS)
    curves = [(name, journal.curves(runs[name].journal)[metric]) for name in pair for metric in METRICS]
    wanted = {json.dumps([name, *curve.tolist()]) for name, curve in curves}
    wait_until(lambda: wanted <= {json.dumps(curve) for curve in drawn_curves(page)}, what="all curves to be drawn")
    assert tab.hosts() == {ui.split("/")[2]}
    tab.close()


@needs_browser
def test_mlflow_shows_the_page_with_its_figures(reported, ui, browser):
    parent = parent_of(reported.cwd).info
    tab = Tab(browser)
    tab.page.goto(f"{ui}#/experiments/{parent.experiment_id}/runs/{parent.run_id}/artifacts/report.html")
    shown = tab.page.frame_locator("iframe")  # in a sandbox
    shown.locator("html[data-drawn=all]").wait_for(state="attached")
    assert shown.locator("h1").inner_text() == NAME
    tab.close()


def name_of(folder: RunFolder) -> str:
    start = journal.first(folder.journal, "start")
    assert start is not None
    return start["name"]


def test_a_page_shows_one_moment_of_a_study_that_goes_on(tmp_path: Path):
    folder = written(tmp_path / "outputs", "s", n_trials=6)
    study = optuna.load_study(study_name="s", storage=open_storage(None, folder))
    study.ask()  # one that runs
    page = Report(study, folder, None)
    study.add_trial(create_trial(value=0.01))
    document = page._document()
    facts = {what: value for value, what in document.facts}
    assert facts["running or waiting"] == "1"
    (history,) = [f for s in document.sections for f in s.figures if f.name == "history-0"]
    assert max(x for trace in history.data if trace["name"] == "complete" for x in trace["x"]) < 6
    assert study.trials[-1].value == 0.01


def test_a_picture_that_cannot_be_drawn_costs_a_warning(
    evil: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no backend")

    monkeypatch.setattr("sweep.reporting.study_page.draw_plots", fail)
    page = tmp_path / "page.html"
    assert report.main(["evil", "--output-dir", str(evil.path.parent.parent), "-o", str(page)]) == 0
    shown = capsys.readouterr()
    assert shown.err == "warning: cannot draw the history and slices (no backend)\n"
    assert f"Plots:     {tmp_path}/plots: curves.png" in shown.out
    assert page.exists()
