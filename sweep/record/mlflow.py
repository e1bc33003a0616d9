"""The only door to MLflow: mirrors journals into a tracking store, as often as it takes and never twice.

Sending is idempotent: a run is found again by the tag `sweep.uid`, a metric row carries the journal's own time (an
MLflow store keeps one row per run, key, step, time and value), params, tags and artifacts overwrite themselves. The
offset in `mlflow.json` only saves work.
"""

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

import sqlalchemy.exc
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from sweep.record import journal
from sweep.record.folder import RunFolder, read_json, write_atomic
from sweep.record.plot import ensure_curves
from sweep.record.store import Store

UID_TAG = "sweep.uid"
FAILURES = (MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError)  # a store that is down, full or refuses
_MAX_METRICS = 1000  # in one log_batch; MLflow's own limits, here and below
_MAX_PARAMS = 100
_MAX_RECORDS = 100  # sent before the offset is written down
_MAX_PARAM_LENGTH = 6000
_MAX_TAG_LENGTH = 8000


class Mirror:
    """Copies journals into one tracking store. Every method, the constructor too, raises one of FAILURES."""

    def __init__(self, store: Store) -> None:
        assert store.uri is not None
        self._artifact_root = store.artifact_root
        self._store = hashlib.sha256(store.uri.encode()).hexdigest()[:16]  # no passwords in files
        self._experiments: dict[str, str] = {}
        self._known: set[str] = set()  # runs that the store had when last asked
        with _first_start(store.artifact_root):
            self._client = MlflowClient(store.uri)  # makes an embedded store's tables
            self._client.search_experiments(max_results=1)  # connects

    def push(self, folder: RunFolder) -> bool:
        """Sends what the store lacks of this trial; True when nothing is left. Raises Busy while another one sends."""
        with folder.mirror_lock():
            states = read_json(folder.mirror_state, {})
            state = states.setdefault(self._store, {"run_id": None, "offset": 0})
            if not self._has(state["run_id"]):
                state.update(run_id=None, offset=0)
            for records, offset in _chunks(journal.read(folder.journal, state["offset"]), state["offset"]):
                state["run_id"] = state["run_id"] or self._run_of(folder)
                self._send(folder, state["run_id"], records)
                state["offset"] = offset
                write_atomic(folder.mirror_state, json.dumps(states))
            return folder.journal.exists() and state["offset"] == folder.journal.stat().st_size

    def abandon(self, folder: RunFolder) -> None:
        """Marks the run of a trial whose process died as KILLED. It is RUNNING again once it is resumed."""
        run_id = read_json(folder.mirror_state, {}).get(self._store, {}).get("run_id")
        if run_id is not None and not folder.is_running() and journal.status(folder.journal) is None:
            self._client.set_terminated(run_id, "KILLED")

    def _has(self, run_id: str | None) -> bool:
        """Whether the store still has the run; it may have been emptied, or replaced by an older copy."""
        if run_id is None:
            return False
        if run_id not in self._known:
            try:
                self._client.get_run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return False
            self._known.add(run_id)
        return True

    def _run_of(self, folder: RunFolder) -> str:
        """The trial's MLflow run, made when there is none yet."""
        start = journal.first(folder.journal, "start")
        assert start is not None, "a journal begins with its start"
        experiment = self._experiment(start["experiment"])
        found = self._client.search_runs(
            [experiment], f"tags.`{UID_TAG}` = '{start['uid']}'", ViewType.ALL, max_results=1
        )
        if found:
            return found[0].info.run_id
        tags = {UID_TAG: start["uid"]}
        run = self._client.create_run(experiment, start_time=start["time"], tags=tags, run_name=start["name"])
        return run.info.run_id

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                root = self._artifact_root
                location = None if root is None else (root / hashlib.sha256(name.encode()).hexdigest()[:12]).as_uri()
                try:
                    self._experiments[name] = self._client.create_experiment(name, location)
                except MlflowException:  # another process was faster
                    found = self._client.get_experiment_by_name(name)
                    if found is None:
                        raise
            if found is not None:
                if found.lifecycle_stage == "deleted":
                    restore = f"mlflow experiments restore --experiment-id {found.experiment_id}"
                    raise MlflowException(f"experiment '{name}' was deleted; bring it back with: {restore}")
                self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def _send(self, folder: RunFolder, run_id: str, records: list[journal.Record]) -> None:
        metrics = [m for record in records if record["kind"] != "start" for m in _metrics(record)]
        for i in range(0, len(metrics), _MAX_METRICS):
            self._client.log_batch(run_id, metrics=metrics[i : i + _MAX_METRICS])
        for record in records:
            if record["kind"] == "start":
                self._send_start(run_id, record)
            elif record["kind"] == "end":
                self._log_tags(run_id, record["tags"])
                ensure_curves(folder)
                for artifact in folder.artifacts():
                    self._client.log_artifact(run_id, str(artifact))
                self._client.set_terminated(run_id, record["status"], record["time"])

    def _send_start(self, run_id: str, start: journal.Record) -> None:
        params = [Param(key, str(value)[:_MAX_PARAM_LENGTH]) for key, value in start["params"].items()]
        for i in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(run_id, params=params[i : i + _MAX_PARAMS])
        self._log_tags(run_id, start["tags"])
        dataset = start["dataset"]
        source, profile = json.dumps(dataset["source"]), json.dumps(dataset["profile"])
        entity = Dataset(dataset["name"], dataset["digest"], "local", source, profile=profile)
        self._client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])
        self._client.update_run(run_id, status="RUNNING")  # also when it was killed and goes on

    def _log_tags(self, run_id: str, tags: dict[str, str]) -> None:
        self._client.log_batch(run_id, tags=[RunTag(key, str(value)[:_MAX_TAG_LENGTH]) for key, value in tags.items()])


@contextmanager
def _first_start(artifact_root: Path | None) -> Iterator[None]:
    """One process at a time makes the tables of an embedded store: MLflow's own first start races."""
    if artifact_root is None:
        yield
        return
    artifact_root.parent.mkdir(parents=True, exist_ok=True)
    with open(artifact_root.parent / ".mlflow.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _chunks(records: Iterator[tuple[journal.Record, int]], offset: int) -> Iterator[tuple[list[journal.Record], int]]:
    """Records in groups that MLflow takes at once, each with the offset behind it."""
    group: list[Any] = []
    for record, offset in records:
        group.append(record)
        if record["kind"] != "metrics" or len(group) == _MAX_RECORDS:
            yield group, offset
            group = []
    if group:
        yield group, offset


def _metrics(record: journal.Record) -> list[Metric]:
    """The record's values; a value that is not finite breaks MLflow's run page and stays behind."""
    return [
        Metric(key, value, record["time"], step)
        for key, column in record["values"].items()
        for step, value in zip(record["steps"], column, strict=True)
        if math.isfinite(value)
    ]
