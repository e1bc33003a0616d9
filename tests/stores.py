"""Stores to upload to, what they have, and studies to be uploaded, written as a controller and its workers would."""

import math
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from guarded import Guarded
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from processes import empty_store
from waiting import wait_until

from sweep.tracking import journal
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.tracking.journal import Journal
from sweep.tracking.store import Store

Rows = dict[str, list[tuple[Any, ...]]]


class Server:
    """A real `mlflow server` on a loopback port of its own; it may be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder, self.database = folder, folder / "mlflow.db"
        self._process: Guarded | None = None

    def start(self) -> None:
        options = {
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
            "--backend-store-uri": f"sqlite:///{self.database}",
            "--artifacts-destination": str(self.folder / "artifacts"),
        }
        if not self.database.exists():
            shutil.copy(empty_store(), self.database)
        self._process = Guarded(
            [sys.executable, "-m", "mlflow", "server", *(word for pair in options.items() for word in pair)],
            self.folder / "server.log",
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # seven processes more
        )
        wait_until(self._answers, what=f"the server of {self.folder}")

    def stop(self) -> None:
        """At once, like a machine that loses its power."""
        if self._process is not None:
            self._process.end()
            self._process = None
            wait_until(lambda: not self._answers(), what="the port to be closed")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=10):
                return True
        except OSError:
            return False


def rows(database: Path) -> Rows:
    """All that a store knows of its runs, straight from the tables."""
    tables = ("runs", "metrics", "latest_metrics", "params", "tags", "datasets", "inputs", "input_tags")
    with closing(sqlite3.connect(database)) as connection:
        return {table: sorted(connection.execute(f"SELECT * FROM {table}"), key=repr) for table in tables}


def runs_of(folder: Path, uri: str) -> list[Run]:
    """A trial's runs in a store; one, when all is well."""
    start = journal.first(RunFolder(folder).journal, "start")
    assert start is not None
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(start["experiment"])
    if experiment is None:
        return []
    return list(client.search_runs([experiment.experiment_id], f"tags.`sweep.uid` = '{start['uid']}'"))


def run_of(folder: Path, uri: str) -> Run:
    (run,) = runs_of(folder, uri)
    return run


def points(run: Run, database: Path) -> dict[str, list[tuple[int, float]]]:
    """Every point of every metric as the store has it, duplicates included."""
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute(
            "SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ? ORDER BY key, step, timestamp",
            [run.info.run_id],
        )
        curves: dict[str, list[tuple[int, float]]] = {}
        for key, step, value, is_nan in found:
            curves.setdefault(key, []).append((step, math.nan if is_nan else value))
    return curves


def recorded(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The same from the journal, which is the truth."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record, _ in journal.read(RunFolder(folder).journal):
        for key, column in record.get("values", {}).items():
            found.setdefault(key, []).extend(zip(record["steps"], column, strict=True))
    return found


def embedded(folder: Path) -> Store:
    """The store that a run has by default when `folder` is its `output_dir`."""
    return Store(f"sqlite:///{folder}/mlflow.db", folder / "mlartifacts")


class Study:
    """A study's folder, written record by record."""

    def __init__(self, output_dir: Path, name: str, **fields: Any) -> None:
        self.folder = StudyFolder(output_dir / "studies" / name)
        self.folder.run.create()
        self.folder.run.config.write_text("tracking: {}\n")
        self._output_dir, self._experiment, self._uid = output_dir, name, uuid.uuid4().hex
        self.begin(**fields)

    def begin(self, **fields: Any) -> None:
        """The study's first record; again, to go on with it."""
        self._start(self.folder.run, {"uid": self._uid, "name": "the study", "tags": {"kind": "study"}} | fields)

    def trial(self, number: int, replicate: int | None = None, **fields: Any) -> RunFolder:
        """Begins a trial, or one of its replicates; again, to go on with it."""
        run = self.folder.trial(number, replicate)
        run.create()
        run.config.write_text("tracking: {}\n")
        dataset = {"name": "none", "digest": "0", "source": {"uri": "generated"}, "profile": {}}
        common = {
            "uid": f"{self._uid} {number} {replicate}",
            "name": f"t{number}",
            "params": {"number": number},
            "dataset": dataset,
        }
        self._start(run, common | {"parent": self.as_parent(run)} | fields)
        return run

    def as_parent(self, run: RunFolder) -> dict[str, str]:
        """The study, as the start of a trial's record names it."""
        return {"uid": self._uid, "name": "the study", "folder": os.path.relpath(self.folder.path, run.path)}

    def epochs(self, run: RunFolder, first: int = 1, last: int = 3) -> None:
        with Journal(run.journal) as made:
            for epoch in range(first, last + 1):
                made.metrics([epoch], {"val/loss": [1 / epoch], "lr": [0.1]})

    def end(self, run: RunFolder, status: str = "FINISHED", **fields: Any) -> None:
        common = {"steps": [0], "values": {"best/val_loss": [0.5]}, "tags": {"state": "COMPLETE"}, "artifacts": []}
        with Journal(run.journal) as made:
            made.event("end", status=status, **(common | fields))

    def whole_trial(self, number: int, replicate: int | None = None) -> RunFolder:
        run = self.trial(number, replicate)
        self.epochs(run)
        self.end(run)
        return run

    def _start(self, run: RunFolder, fields: dict[str, Any]) -> None:
        up = os.path.relpath(self._output_dir, run.path)
        common = {"experiment": self._experiment, "output_dir": up, "store": None, "params": {}, "tags": {}}
        with Journal(run.journal) as made:
            made.event("start", **(common | fields))


def assert_uploaded(study: Study, database: Path, status: str = "FINISHED") -> Run:
    """The store has the study as its folder does: one run for it and one for each trial below, every point once."""
    uri = f"sqlite:///{database}"
    parent = run_of(study.folder.path, uri)
    client = MlflowClient(uri)
    runs = client.search_runs([parent.info.experiment_id])
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(runs) == 1 + len(children) == 1 + len(study.folder.runs())
    for folder in (study.folder.run, *study.folder.runs()):
        run = run_of(folder.path, uri)
        assert points(run, database) == recorded(folder.path)
        assert run.info.status == (status if folder is study.folder.run else journal.status(folder.journal))
    assert parent.info.run_name == "the study"
    assert parent.data.tags["kind"] == "study"
    return parent


_KILLED_AT = """
import os, signal, sys
from pathlib import Path
import mlflow.store.tracking.sqlalchemy_store  # slow, and else done in each process
import sqlalchemy
from sweep.tracking.mlflow_bulk import Tables
from sweep.tracking.folders import StudyFolder
from sweep.tracking.mlflow_client import Uploader
from sweep.tracking.store import Store

outputs, steps = Path(sys.argv[1]), sys.argv[2].split()

def push(folder, first_step):
    uploader = Uploader(Store(f"sqlite:///{outputs}/mlflow.db", outputs / "mlartifacts"))
    left = first_step
    def step(*_):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "commit", step)  # before each of the store's
    sys.addaudithook(lambda event, _: step() if event in steps else None)
%s
first, every = map(int, sys.argv[3:5])
for n, name in enumerate(sys.argv[5:]):
    if (pid := os.fork()) == 0:
        push(StudyFolder(name), first + n * every)
        os._exit(0)
    killed = os.waitpid(pid, 0)[1] == signal.SIGKILL
    print("killed" if killed else "through", flush=True)
    if not killed:
        break
"""


def outcomes_of_killed(
    outputs: Path, studies: Sequence[Study], push: str, steps: Sequence[str], first: int = 1, every: int = 1
) -> list[str]:
    """Has a process of its own push each study, which is killed some steps later every time, until one gets through.

    push: what it does, in Python, with `uploader` and `folder`. steps: audit events that are one, beside commits.
    first: the step before which the first is killed. every: how many steps later the next is.
    """
    folders = [str(study.folder.path) for study in studies]
    script = [sys.executable, "-c", _KILLED_AT % push, str(outputs), " ".join(steps), str(first), str(every), *folders]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    outcomes = done.stdout.split()
    assert outcomes == ["killed"] * (len(outcomes) - 1) + ["through"], done.stderr
    return outcomes
