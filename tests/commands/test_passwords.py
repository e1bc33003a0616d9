"""The password of a store is in nothing that is printed, kept or sent."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from processes import quick

from sweep import ConfigError, compose
from sweep.config.nodes import Tracking
from sweep.config.schema import Config, validate
from sweep.storage.storage import open_storage
from sweep.tracking.folders import RunFolder
from sweep.tracking.journal import Journal
from sweep.tracking.run_recorder import stored_text
from sweep.tracking.store import Store, recorded_store, recorded_uri, store_of, tracking_store
from sweep.tracking.stored_run import stored_config
from sweep.utils.passwords import without_password, without_passwords

SECRET = "hush-7b2c"
_SMALL = ("experiment=debug", "data.n=96", "trainer.batch_size=16", "trainer.epochs=1")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://me:hush@host:5000", "http://me:***@host:5000"),
        ("postgresql://:hush@host/db", "postgresql://:***@host/db"),
        ("postgresql://me:hu/h@sh@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me@host/db?password=hush&sslmode=off", "postgresql://me@host/db?password=***&sslmode=off"),
        ("postgresql://host/db?user=me&p%61ssword=hu'sh", "postgresql://host/db?user=me&p%61ssword=***"),
        ("mssql+pyodbc://?odbc_connect=UID%3Dme%3BPWD%3Dhush", "mssql+pyodbc://?odbc_connect=***"),
        ("""tracking.uri="http://me:hush@h" """.strip(), 'tracking.uri="http://me:***@h"'),
        ("tracking={uri:'http://h?token=hush',mlflow:true}", "tracking={uri:'http://h?token=***"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////a/b.db?timeout=5", "sqlite:////a/b.db?timeout=5"),
        ("file:///a:b@c", "file:///a:b@c"),
    ],
)
def test_a_password_is_hidden_wherever_it_stands(given: str, kept: str) -> None:
    assert without_password(given).startswith(kept)
    assert "hush" not in without_password(given)
    assert without_passwords(f"API request to {without_password(given)} failed: a@b").endswith(" failed: a@b")


def test_what_lacks_its_password_is_asked_for_it() -> None:
    with pytest.raises(ConfigError, match=r"tracking.uri: .* lacks its password; write it in place of \*\*\*"):
        tracking_store(Tracking(uri="http://me:***@host"), Path("/outputs"))
    with pytest.raises(ConfigError, match=r"hydra.sweeper.storage: .* lacks its password"):
        open_storage("postgresql://me@host/db?password=***", None)  # type: ignore[arg-type]  # of a file only


@pytest.mark.process
def test_no_output_and_no_row_of_mlflow_holds_it(tmp_path: Path) -> None:
    tracked = (*_SMALL, f"tracking.uri='http://me:{SECRET}@127.0.0.1:1'")  # nobody is there, which is told with the URI
    study = ("-m", "hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=2", "optimizer.lr=interval(1e-3,1e-2)")
    commands = [
        ("sweep.run", ("-m", "hydra/sweeper=basic", "seed=1", "hydra.output_subdir=.hydra", *tracked)),
        ("sweep.run", (*study, *tracked)),
        ("sweep.lr_range", (tracked[-1], "lr_range.n_updates=100", "lr_range.n_seeds=2")),
        ("sweep.sync", ("--uri", f"sqlite:///{tmp_path}/mlflow.db")),
    ]
    printed = ""
    for module, arguments in commands:
        done = quick(tmp_path, *arguments, module=module, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
        assert done.returncode == 0, done.stderr
        printed += done.stdout + done.stderr
    assert SECRET not in printed
    assert "MLflow lacks this run" in printed
    assert "http://me:***@127.0.0.1:1" in printed
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        assert store.execute("SELECT count(*) FROM runs").fetchone()[0] == 4
        assert SECRET not in "\n".join(store.iterdump())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("mlartifacts" in path.parts for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    private = [path for path in files if _may_hold_a_secret(path)]
    names = {"config.yaml", "overrides.yaml", "hydra.yaml", "multirun.yaml", "best.yaml", "lr_range.yaml"}
    assert {path.name for path in private} >= {*names, "journal.jsonl", "run.log", "mirror.log"}
    assert [path for path in private if path.stat().st_mode & 0o077] == []


@pytest.mark.process
def test_nor_does_anything_of_a_comparison(tmp_path: Path, postgresql: str) -> None:
    storage = f"postgresql+psycopg://postgres:{SECRET}@{postgresql.partition('://')[2]}"  # which is trusted without it
    compared = ("optimizer=sgd,adam", "compare.name=c", "compare.n_seeds=2", "hydra.sweeper.n_trials=1")
    given = (f"hydra.sweeper.storage='{storage}'", f"tracking.uri='http://me:{SECRET}@127.0.0.1:1'")
    commands = [
        ("sweep.compare", (*_SMALL, *compared, "hydra.sweeper.n_jobs=1", *given)),
        ("sweep.sync", ("--uri", f"sqlite:///{tmp_path}/mlflow.db")),
        ("sweep.report", ("c--sgd--tuning", "--storage", storage)),
    ]
    printed = ""
    for module, arguments in commands:
        done = quick(tmp_path, *arguments, module=module, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
        assert done.returncode == 0, done.stderr
        printed += done.stdout + done.stderr
    assert SECRET not in printed
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        dumped = "\n".join(store.iterdump())
    assert SECRET not in dumped
    assert [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []
    record = tmp_path / "outputs" / "studies" / "c--sgd--tuning" / "journal.jsonl"
    facts = tmp_path / "outputs" / "comparisons" / "c" / "comparison.yaml"
    for shown in ("http://me:***@127.0.0.1:1", storage.replace(SECRET, "***")):
        for text in (dumped, record.read_text(), facts.read_text()):
            assert shown in text


def _may_hold_a_secret(path: Path) -> bool:
    names_packages_only = path.name in ("python_env.yaml", "conda.yaml")  # of a model in MLflow
    return path.suffix in (".jsonl", ".log", ".yaml") and path.name != "optuna.log" and not names_packages_only


def test_a_run_that_is_continued_takes_the_password_of_the_users_own_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"http://me:{SECRET}@127.0.0.1:9"
    run = RunFolder(tmp_path / "runs" / "x")
    run.create()
    with Journal(run.journal) as journal:
        common = {"uid": "u", "name": "n", "experiment": "e", "params": {}, "tags": {}, "output_dir": "../.."}
        journal.event("start", **common, store=recorded_uri(Store(uri, None), tmp_path))
    run.config.write_text(stored_text(validate(compose([f"tracking.uri='{uri}'"]))))
    assert SECRET not in run.journal.read_text() + run.config.read_text()
    with pytest.raises(ConfigError, match=r"me:\*\*\*@.* set it with its password, or MLFLOW_TRACKING_URI"):
        store_of(run, Tracking(), tmp_path)
    assert store_of(run, Tracking(uri=uri), tmp_path).uri == uri
    assert recorded_store(run, uri) == Store(uri, None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert store_of(run, Tracking(), tmp_path).uri == uri
    assert stored_config(run, Config()).tracking.uri is None
