"""Outputs that an earlier commit made go on with today's commands, as if nothing had been.

tests/old_outputs/ holds them, packed; campaigns/make_old_outputs.py made them and says what each is.
"""

import hashlib
import json
import re
import socket
import sqlite3
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from campaigns.kill_study import disagreements
from campaigns.make_old_outputs import (
    COMPARE,
    COMPARE_STOPPED,
    DUMP,
    INTERRUPTED,
    KILLED,
    KILLED_STUDY,
    MACHINE,
    PACKED,
    SEEDS,
    STOPPED,
    STUDY,
)
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from processes import error_line, final_values, mlflow_runs, quick, recorded
from stores import points, rows, run_of
from stores import recorded as recorded_points
from study_folders import only_study

from sweep.execution.queue import OWNER
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder, StudyFolder

pytestmark = pytest.mark.process

ARCHIVE = Path(__file__).parents[1] / "old_outputs" / "673d293.tar.xz"
INTERRUPTED_STUDIES = {
    "interrupted": INTERRUPTED,
    "packed": PACKED,
    "postgresql": KILLED_STUDY,
    "postgresql-seeds": SEEDS,
}
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def unpack(kind: str, place: Path) -> Path:
    """The directory whose outputs they are."""
    with tarfile.open(ARCHIVE) as archive:
        members = [member for member in archive if Path(member.name).parts[0] == kind]
        archive.extractall(place, members, filter="data")
    return place / kind


def done(cwd: Path, *overrides: str, module: str = "sweep.run") -> str:
    """What a command shows that ends well."""
    ended = quick(cwd, *overrides, module=module)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    return ended.stdout


def restored(cwd: Path, request: pytest.FixtureRequest) -> str | None:
    """The URL of the study's database, with all that the old one had; None where the study is in a file."""
    if not (cwd / DUMP).exists():
        return None
    import psycopg

    url: str = request.getfixturevalue("postgresql")
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as server:
        server.execute((cwd / DUMP).read_bytes())
    return url


@contextmanager
def opened(folder: StudyFolder, url: str | None) -> Iterator[BaseStorage]:
    """As any other program would."""
    if url is None:
        yield JournalStorage(JournalFileBackend(str(folder.storage)))
        return
    storage = RDBStorage(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def trials_of(folder: StudyFolder, url: str | None = None) -> list[FrozenTrial]:
    with opened(folder, url) as storage:
        return optuna.load_study(study_name=folder.path.name, storage=storage).get_trials()


def move_to_this_machine(folder: StudyFolder, url: str | None) -> None:
    """Have a killed worker be one of this machine: its lock shows at once that it is dead, not only 90 s of silence."""
    with opened(folder, url) as storage:
        for trial in storage.get_all_trials(storage.get_study_id_from_name(folder.path.name)):
            if trial.state == TrialState.RUNNING:
                owner = str(trial.user_attrs[OWNER]).replace(MACHINE, socket.gethostname())
                storage.set_trial_user_attr(trial._trial_id, OWNER, owner)


def facts(trial: FrozenTrial) -> tuple[Any, ...]:
    """All that is known of a trial that has ended."""
    return trial.number, trial.state, trial.params, trial.values, trial.intermediate_values, trial.user_attrs


def runs_of(folder: StudyFolder) -> dict[Path, dict[str, tuple[list[int], list[float]]]]:
    return {run.path: recorded(run) for run in folder.runs()}


def assert_gone_on_with(found: dict[str, Any], before: dict[str, Any]) -> None:
    """What was recorded before stands there still, each point once."""
    for name, (steps, values) in found.items():
        old_steps, old_values = before.get(name, ([], []))
        assert steps[: len(old_steps)] == old_steps, name
        assert values[: len(old_values)] == old_values, name
        assert steps == sorted(set(steps)), name


@pytest.mark.parametrize(("name", "command"), [("stopped", STOPPED), ("killed", KILLED)])
def test_a_stopped_run_ends_as_one_that_was_never_stopped(name: str, command: tuple[str, ...], tmp_path: Path) -> None:
    cwd = unpack("runs", tmp_path)
    run, anew = RunFolder(cwd / "outputs/runs" / name), tmp_path / "anew"
    before = recorded(run)
    assert 8 <= len(before["val/loss"][0]) < 80
    assert "resuming" in done(cwd, f"resume=outputs/runs/{name}")
    anew.mkdir()
    done(anew, *command, "tracking=off")
    uninterrupted = RunFolder(anew / "outputs/runs" / name)
    found, wanted = recorded(run), recorded(uninterrupted)
    assert_gone_on_with(found, before)
    assert len(found["val/loss"][0]) == 80
    assert found.keys() == wanted.keys()
    # another processor than the one that made them may round otherwise
    rounds_alike = all(wanted[curve][1][: len(values)] == values for curve, (_, values) in before.items())
    relative, absolute = (0.0, 0.0) if rounds_alike else (1e-4, 1e-6)
    for curve, (steps, values) in wanted.items():
        assert found[curve][0] == steps, curve
        assert found[curve][1] == pytest.approx(values, rel=relative, abs=absolute), curve
    ended, ends = final_values(run), final_values(uninterrupted)
    assert ended.keys() == ends.keys()
    for name, (value,) in ends.items():
        assert ended[name] == [pytest.approx(value, rel=relative, abs=absolute)], name
    assert_sent([run], cwd)


def test_a_finished_run_is_known_to_be_finished(tmp_path: Path) -> None:
    refused = quick(unpack("runs", tmp_path), "resume=outputs/runs/done", torch=False)
    assert "has finished" in error_line(refused)
    assert refused.returncode == 2


@pytest.mark.parametrize("kind", INTERRUPTED_STUDIES)
def test_an_interrupted_study_goes_on_when_its_command_is_given_again(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cwd = unpack(kind, tmp_path)
    folder, url = only_study(cwd), restored(cwd, request)
    move_to_this_machine(folder, url)
    before, runs_before = trials_of(folder, url), runs_of(folder)
    n_done = sum(trial.state in ENDED for trial in before)
    assert 0 < n_done < len(before) < 6
    storage = () if url is None else (f"hydra.sweeper.storage={url}",)
    shown = done(cwd, *INTERRUPTED_STUDIES[kind], *storage)
    assert f"study {folder.path.name}: resuming, {n_done} of 6 trials are done" in shown
    assert only_study(cwd).path == folder.path

    trials, runs = trials_of(folder, url), runs_of(folder)
    assert [trial.number for trial in trials] == list(range(6))
    assert all(trial.state in ENDED for trial in trials)
    for old, new in zip(before, trials[: len(before)], strict=True):
        if old.state in ENDED:
            assert facts(new) == facts(old)
        assert new.params == old.params
        assert new.intermediate_values.items() >= old.intermediate_values.items()
    for path, curves in runs_before.items():
        assert_gone_on_with(runs[path], curves)
    assert len(runs) == 6 * (1 if kind != "postgresql-seeds" else 2)
    if (cwd / "outputs/mlflow.db").exists():
        assert disagreements(cwd, trials) == []
        assert_sent([folder.run, *folder.runs()], cwd)
        assert (cwd / "outputs/mirror.log").read_text() == ""
    if url is not None:
        assert_reported(cwd, folder, trials, "--storage", url)


def best_of(trials: Sequence[FrozenTrial]) -> FrozenTrial:
    return min((trial for trial in trials if trial.state == TrialState.COMPLETE), key=lambda trial: trial.values[0])


def assert_reported(cwd: Path, folder: StudyFolder, trials: Sequence[FrozenTrial], *options: str) -> None:
    done(cwd, folder.path.name, *options, module="sweep.report")
    shown = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", folder.report.read_text()))
    assert f" {folder.path.name} A study of val/loss (minimized)" in shown
    best, states = best_of(trials), Counter(trial.state.name.lower() for trial in trials)
    assert f"best val/loss, trial {best.number} {best.values[0]:.4g} " in shown
    for state, n in states.items():
        assert f" {state} {n} " in shown


@pytest.mark.parametrize("kind", ["study", "comparison"])
def test_a_finished_study_is_reported(kind: str, tmp_path: Path) -> None:
    cwd = unpack(kind, tmp_path)
    folder = StudyFolder(min((cwd / "outputs/studies").iterdir()))
    assert_reported(cwd, folder, trials_of(folder))


def test_the_best_of_a_finished_study_trains_again(tmp_path: Path) -> None:
    cwd = unpack("study", tmp_path)
    folder = only_study(cwd)
    best = best_of(trials_of(folder))
    done(cwd, f"from_study={folder.path.name}", "hydra.run.dir=outputs/runs/again")
    curve = recorded(RunFolder(cwd / "outputs/runs/again"))["val/loss"]
    before = recorded(folder.trial(best.number))["val/loss"]
    assert curve[0] == before[0]
    assert curve[1] == pytest.approx(before[1], rel=1e-4)


def test_a_finished_study_is_known_to_be_finished_and_takes_more_trials(tmp_path: Path) -> None:
    cwd = unpack("study", tmp_path)
    folder = only_study(cwd)
    before = [facts(trial) for trial in trials_of(folder)]
    shown = done(cwd, *STUDY)
    assert f"study {folder.path.name}: resuming, 4 of 4 trials are done" in shown
    assert [facts(trial) for trial in trials_of(folder)] == before
    done(cwd, *STUDY, "hydra.sweeper.n_trials=6")
    assert only_study(cwd).path == folder.path
    trials = trials_of(folder)
    assert [facts(trial) for trial in trials[:4]] == before
    assert [trial.state in ENDED for trial in trials] == [True] * 6
    assert disagreements(cwd, trials) == []
    assert_sent([folder.run, *folder.runs()], cwd)


def test_a_finished_comparison_comes_to_the_same_numbers_without_training(tmp_path: Path) -> None:
    cwd = unpack("comparison", tmp_path)
    (file,) = cwd.glob("outputs/comparisons/*/comparison.yaml")
    journals = {path: path.read_bytes() for path in cwd.glob("outputs/studies/**/journal.jsonl")}
    before = yaml.safe_load(file.read_text())
    shown = done(cwd, *COMPARE, module="sweep.compare")
    assert shown.count("(done before)") == 6
    assert list(cwd.glob("outputs/comparisons/*/comparison.yaml")) == [file]
    after = yaml.safe_load(file.read_text())
    (task,) = after["tasks"]
    assert [after.pop(key) for key in ("direction", "objective_direction")] == ["minimize", "minimize"]
    assert all(warning.startswith("2 seeds cannot") for warning in after.pop("warnings"))
    for name, contender in task["contenders"].items():
        assert f"optimizer={name}" in contender.pop("best")
        assert contender["budget"].pop("has_interval")
    assert after == before, "but for what newer versions add"
    assert {path: path.read_bytes() for path in cwd.glob("outputs/studies/**/journal.jsonl")} == journals


def test_a_stopped_comparison_goes_on_when_its_command_is_given_again(tmp_path: Path) -> None:
    cwd = unpack("comparison-stopped", tmp_path)
    folder = only_study(cwd)
    before, runs_before = trials_of(folder), runs_of(folder)
    done(cwd, *COMPARE_STOPPED, module="sweep.compare")
    trials, runs = trials_of(folder), runs_of(folder)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert [facts(trial) for trial in trials[:1]] == [facts(trial) for trial in before[:1]]
    assert [trial.params for trial in trials[: len(before)]] == [trial.params for trial in before]
    for path, curves in runs_before.items():
        assert_gone_on_with(runs[path], curves)
    (file,) = cwd.glob("outputs/comparisons/*/comparison.yaml")
    (task,) = yaml.safe_load(file.read_text())["tasks"]
    assert task["contenders"].keys() == {"sgd", "adam"}
    assert len(list((cwd / "outputs/studies").iterdir())) == 6


@pytest.mark.parametrize(
    ("kind", "place"),
    [("runs", "in place"), ("runs", "moved"), ("packed", "in place"), ("packed", "moved"), ("postgresql", "moved")],
)
def test_sync_sends_what_mlflow_lacks_and_nothing_twice(kind: str, place: str, tmp_path: Path) -> None:
    cwd = unpack(kind, tmp_path)
    if place == "in place":
        pretend_made_here(cwd)
    database = cwd / "outputs/mlflow.db"
    runs = [RunFolder(path.parent) for path in (cwd / "outputs").rglob("journal.jsonl")]
    before, n_before = rows(database), len(mlflow_runs(cwd))
    assert n_before == len(runs) - (2 if kind == "runs" else 0)
    assert f"{len(runs)} of {len(runs)} tracked runs" in done(cwd, "outputs", module="sweep.sync")
    assert_sent(runs, cwd)
    after = rows(database)
    assert len(mlflow_runs(cwd)) == len(runs)
    assert set(before["metrics"]) <= set(after["metrics"])
    done(cwd, "outputs", module="sweep.sync")
    assert {**rows(database), "runs": None} == {**after, "runs": None}  # killed ones have ended at the last sync
    assert len(mlflow_runs(cwd)) == len(runs)


def assert_sent(runs: Sequence[RunFolder], cwd: Path) -> None:
    """MLflow has each of them once, as it ended, with every point once."""
    database = cwd / "outputs/mlflow.db"
    for run in runs:
        sent = run_of(run.path, f"sqlite:///{database}")
        assert points(sent, database) == recorded_points(run.path)
        assert sent.info.status == (journal.status(run.journal) or "KILLED")


def pretend_made_here(cwd: Path) -> None:
    """Have the outputs name this folder wherever they name the one in which they were made."""
    (store,) = {key for state in cwd.rglob("mlflow.json") for key in json.loads(state.read_text())}
    here = hashlib.sha256(f"sqlite:///{cwd}/outputs/mlflow.db".encode()).hexdigest()[:16]
    for state in cwd.rglob("mlflow.json"):
        state.write_text(state.read_text().replace(store, here))
    with closing(sqlite3.connect(cwd / "outputs/mlflow.db")) as database, database:
        (location,) = database.execute("SELECT artifact_location FROM experiments WHERE name = 'sweep'").fetchone()
        made = location.partition("/outputs/")[0]
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (made, cwd.as_uri()))
