"""Outputs that somebody else prepared: what is done with them writes, reads and sends nothing beyond them."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import SMALL
from listener import Listener
from omegaconf import OmegaConf
from stores import Study

from sweep import ConfigError, compose, report, run_trial, sync
from sweep.config.nodes import Tracking
from sweep.config.stored_overrides import stored_overrides
from sweep.search.auto_bounds import STARTS, stored_starts
from sweep.search.settings import StudySettings
from sweep.storage.storage import open_storage
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.tracking.journal import Journal
from sweep.tracking.mlflow_client import Uploader
from sweep.tracking.store import Store, own_store, store_of, tracking_store

pytestmark = pytest.mark.slow  # MLflow, or many compositions

SECRET = "hush-7b2c"


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener._socket.close()


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in sorted(folder.rglob("*")) if not p.is_dir()}


def _record(run: RunFolder, output_dir: str = "../..", store: str | None = None, **end: Any) -> RunFolder:
    """A run that has ended, as its record tells it."""
    run.create()
    dataset = {"name": "none", "digest": "0", "source": {"uri": "generated"}, "profile": {}}
    common = {"uid": f"uid of {run.path}", "name": "n", "experiment": "e", "params": {}, "tags": {}, "dataset": dataset}
    with Journal(run.journal) as made:
        made.event("start", **common, output_dir=output_dir, store=store, parent=None)
        made.event("end", **({"status": "FINISHED", "steps": [], "values": {}, "tags": {}, "artifacts": []} | end))
    run.config.write_text("tracking: {mlflow: true}\n")
    return run


# Stored configurations


@pytest.mark.parametrize(
    "override",
    [
        "experiment_name='leak-${oc.env:SECRET}'",
        "+model.a=[1,{b: '${oc.decode:x}'}]",
        "experiment_name=x${a.${oc.env:SECRET}}",
        "hydra.job.name=x",
        "hydra/launcher=submitit_slurm",
        'hydra.searchpath=["file:///somebody/elses"]',
    ],
)
def test_stored_overrides_that_only_the_users_own_command_may_give_are_refused(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stored_overrides([override], [], "from_study")
    assert caught.value.key == "from_study"


def test_what_stored_overrides_may_say() -> None:
    given = ['hydra.searchpath=["file:///mine"]']
    plain = ["optimizer=sgd", "trainer.seed=${seed}", r"+a=\${seed}", "tracking=off", "~scheduler.gamma"]
    dropped = ["tracking.uri=http://x", "output_dir=/x", "+tracking.uri=x", "resume=/x", "from_study=x", "tracking=x"]
    assert stored_overrides([*given, *plain, *dropped], given, "from_study") == plain


def _study_with_best(output_dir: Path, *overrides: str) -> None:
    folder = StudyFolder(output_dir / "studies" / "s")
    folder.path.mkdir(parents=True)
    folder.best.write_text(OmegaConf.to_yaml({"trial": 0, "values": [1.0], "overrides": overrides}))


def test_from_study_tells_a_strangers_server_nothing(
    tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweep.config.best_config import best_config

    monkeypatch.setenv("SECRET", SECRET)
    _study_with_best(tmp_path / "a", f"tracking.uri={listener.url}", "seed=3")
    config = best_config(str(tmp_path / "a"), "s", [])
    assert (config.tracking.uri, config.seed) == (None, 3)
    _study_with_best(tmp_path / "b", "experiment_name=leak-${oc.env:SECRET}")
    with pytest.raises(ConfigError, match="resolver"):
        best_config(str(tmp_path / "b"), "s", [])


@pytest.mark.process
def test_resuming_a_strangers_run_resolves_nothing_and_sends_it_nowhere(
    tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    run = RunFolder(tmp_path / "outputs" / "runs" / "x")
    run.create()
    config = compose([*SMALL, f"tracking.uri={listener.url}", "output_dir=/nowhere"])
    config.experiment_name = "LEAK"
    run.config.write_text(OmegaConf.to_yaml(config, resolve=True).replace("LEAK", "leak-${oc.env:SECRET}"))
    outcome = run_trial(compose([f"resume={run.path}", f"output_dir={tmp_path}/outputs"]))
    assert outcome.tracking_uri == f"sqlite:///{tmp_path}/outputs/mlflow.db"
    assert not listener.was_asked()
    assert SECRET not in run.journal.read_text() + run.config.read_text()


# Places


def test_a_recorded_server_counts_only_if_it_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _record(RunFolder(tmp_path / "runs" / "x"), store="http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="not your own setting"):
        store_of(run, Tracking(), tmp_path)
    assert store_of(run, Tracking(uri="http://127.0.0.1:9"), tmp_path).uri == "http://127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert store_of(run, Tracking(), tmp_path) == Store("http://127.0.0.1:9", None)


def test_sync_sends_what_is_the_users_and_names_what_is_not(
    tmp_path: Path, listener: Listener, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = tmp_path / "outputs"
    _record(RunFolder(outputs / "runs" / "mine"))
    _record(RunFolder(outputs / "runs" / "theirs"), store=listener.url)
    _record(RunFolder(outputs / "runs" / "away"), output_dir="../../../elsewhere")
    assert sync.main([str(outputs)]) == 2
    printed = capsys.readouterr()
    assert "1 of 3 tracked runs" in printed.out
    assert listener.url in printed.err
    assert f"records '{tmp_path}/elsewhere' as its output_dir" in printed.err
    assert not listener.was_asked()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"]


def test_artifacts_are_files_of_ours_and_stay_below_the_outputs(tmp_path: Path) -> None:
    outputs, private = tmp_path / "outputs", tmp_path / "private"
    private.mkdir()
    (private / "id_rsa").write_text(SECRET)
    names = ["../../../private", "../../../private/id_rsa", "/etc/hostname", "journal.jsonl", "error.txt", 3]
    run = _record(RunFolder(outputs / "runs" / "x"), artifacts=names)
    run.error.write_text("why")
    before = _snapshot(private)
    assert sync.main([str(outputs)]) == 0
    sent = [path.name for path in (outputs / "mlartifacts").rglob("*") if path.is_file()]
    assert sent == ["error.txt"]
    with sqlite3.connect(outputs / "mlflow.db") as store:
        store.execute("UPDATE runs SET artifact_uri = ?", (f"file://{private}",))
        store.execute("UPDATE experiments SET artifact_location = ?", (f"file://{private}",))
    run.sync_state.unlink()
    _record(RunFolder(outputs / "runs" / "y"), artifacts=["error.txt"]).error.write_text("why")
    assert sync.main([str(outputs)]) == 0
    assert _snapshot(private) == before
    with sqlite3.connect(outputs / "mlflow.db") as store:
        places = [Path(uri.removeprefix("file://")) for (uri,) in store.execute("SELECT artifact_uri FROM runs")]
    assert [place.is_relative_to(outputs / "mlartifacts") for place in places] == [True, True]
    assert [(place / "error.txt").is_file() for place in places] == [True, True]


@pytest.mark.parametrize(
    "link", ["mlflow.db", "mirror.log", "mlartifacts", "runs/x/journal.jsonl.tmp", "runs/x/error.txt", "runs/x/.lock"]
)
def test_links_are_not_followed(tmp_path: Path, link: str) -> None:
    outputs, private = tmp_path / "outputs", tmp_path / "private"
    private.mkdir()
    _record(RunFolder(outputs / "runs" / "x"), artifacts=["error.txt"])
    (outputs / link).symlink_to(private / "target")
    assert sync.main([str(outputs)]) == 2
    with pytest.raises(ConfigError, match="link"):
        run_trial(compose([f"resume={outputs}/runs/x", f"output_dir={outputs}"]))
    assert list(private.iterdir()) == []


@pytest.mark.parametrize("kind", ["postgresql+psycopg", "grpc", "sqlite", "file"])
def test_a_report_opens_no_storage_that_a_stranger_named(
    kind: str, tmp_path: Path, listener: Listener, capsys: pytest.CaptureFixture[str]
) -> None:
    place = listener.url.removeprefix("http://")
    url = {"sqlite": f"sqlite:///{tmp_path}/theirs.db", "file": f"{tmp_path}/theirs.log"}.get(kind, f"{kind}://{place}")
    study = Study(tmp_path / "outputs", "s", storage=url)
    study.end(study.folder.run)
    assert report.main(["s", "--output-dir", str(tmp_path / "outputs")]) == 2
    assert f"error: storage: the study's record names {url}" in capsys.readouterr().err
    assert not listener.was_asked()
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_a_storage_that_is_none_is_refused_and_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study(tmp_path / "outputs", "s")
    study.folder.run.config.write_text("tracking: {mlflow: false}\n")
    study.end(study.folder.run)
    with sqlite3.connect(tmp_path / "mine.db") as mine:
        mine.execute("CREATE TABLE mine (x)")
    (tmp_path / "notes.txt").write_text("mine")
    before = _snapshot(tmp_path)
    for storage in ("sqlite:///{}/mine.db", "sqlite:///{}/none.db", "{}/none.log", "{}/notes.txt"):
        given = ["s", "--output-dir", str(tmp_path / "outputs"), "--storage", storage.format(tmp_path)]
        assert report.main(given) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: storage: ")
        assert _snapshot(tmp_path) == before


def test_a_mistyped_storage_leaves_nothing_though_the_study_is_tracked(tmp_path: Path) -> None:
    study = Study(tmp_path / "outputs", "s")
    study.end(study.folder.run)
    before = _snapshot(tmp_path)
    assert report.main(["s", "--output-dir", str(tmp_path / "outputs"), "--storage", f"{tmp_path}/none.log"]) == 2
    assert _snapshot(tmp_path) == before


@pytest.mark.parametrize("value", ["${oc.env:SECRET}", -1.0, True, float("inf"), None, {}])
def test_bounds_that_a_stranger_stored_are_numbers_or_refused(value: Any, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "studies" / "s")
    folder.path.mkdir(parents=True)
    study = optuna.create_study(storage=open_storage(None, folder), study_name="s")
    study.set_user_attr(STARTS, {"": {"optimizer.lr": {"value": 0.1, "low": 0.01, "high": 1}}})
    assert stored_starts(StudySettings(), "s", folder, "uid") is not None
    study.set_user_attr(STARTS, {"": {"optimizer.lr": {"value": value, "low": 0.01, "high": 1}}})
    with pytest.raises(ConfigError, match="are damaged"):
        stored_starts(StudySettings(), "s", folder, "uid")


def test_a_run_of_the_store_that_was_made_for_another_record_is_not_written_to(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    mine, theirs = (_record(RunFolder(outputs / "runs" / name)) for name in ("mine", "theirs"))
    store = own_store(outputs)
    uploader = Uploader(store)
    uploader.push(mine)
    shutil.copy(mine.sync_state, theirs.sync_state)  # it names the run of the other
    with sqlite3.connect(outputs / "mlflow.db") as database:
        before = list(database.execute("SELECT * FROM runs"))
    for again in (uploader, Uploader(store)):
        again.abandon(theirs)
        again.push(theirs)
    with sqlite3.connect(outputs / "mlflow.db") as database:
        assert before[0] in list(database.execute("SELECT * FROM runs"))
        named = dict(database.execute("SELECT value, count(*) FROM tags WHERE key = 'sweep.uid' GROUP BY value"))
    assert named == {f"uid of {mine.path}": 1, f"uid of {theirs.path}": 1}


# A store's URL


@pytest.mark.parametrize("sign", "?#%")
def test_a_sign_that_a_url_cannot_hold_is_refused_where_it_would_lead_astray(tmp_path: Path, sign: str) -> None:
    with pytest.raises(ConfigError, match="contains a") as caught:
        tracking_store(Tracking(), tmp_path / f"a{sign}b")
    assert caught.value.key == "output_dir"
    assert tracking_store(Tracking(mlflow=False), tmp_path / f"a{sign}b").uri is None
    assert own_store(tmp_path / "a b'c").uri == f"sqlite:///{tmp_path}/a b'c/mlflow.db"


@pytest.mark.process
def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    outcome = run_trial(compose([*SMALL, "tracking=off", "trainer.epochs=1", 'output_dir="~/o"']))
    assert outcome.folder.parent == tmp_path / "o" / "runs"
    assert not os.path.lexists(tmp_path / "~")
    assert sync.main(["~/o"]) == 0
