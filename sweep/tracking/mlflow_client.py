"""The only door to MLflow: mirrors journals into a tracking store, as often as it takes and never twice.

Sending is idempotent: a run is found again by the tag `sweep.uid`, a metric row carries the journal's own time (an
MLflow store keeps one row per run, key, step, time and value), params, tags and artifacts overwrite themselves. What
`mlflow.json` knows of a run only saves work.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

import sqlalchemy.exc
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import append_to_uri_path

from sweep.config.overrides import command, with_variable
from sweep.figures.drawing import drawing_problem
from sweep.tracking import journal
from sweep.tracking.attempt import require_not_ended
from sweep.tracking.chunks import Chunk, SyncCursor, artifact_files, artifact_names, most_sent, portions
from sweep.tracking.curves_picture import ensure_curves
from sweep.tracking.folders import Busy, RunFolder
from sweep.tracking.mlflow_bulk import Changed, Gone, Tables, WholeRun
from sweep.tracking.store import Store, sqlite_url
from sweep.utils.checked_file import damage_of
from sweep.utils.errors import Damaged, DamagedJournal, DeletedInStore
from sweep.utils.passwords import without_password
from sweep.utils.paths import is_inside

UID_TAG = "sweep.uid"
PARENT_TAG = "mlflow.parentRunId"
# A store that is down, full or refuses.
FAILURES = (MlflowException, DeletedInStore, sqlalchemy.exc.SQLAlchemyError, OSError)
_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the latter is also said of what is marked as deleted
_MAX_ENTITIES = 1000  # in one log_batch; MLflow's own limits, here and below
_MAX_OF_A_KIND = {"metrics": 1000, "params": 100, "tags": 100}
_MAX_BYTES = 900_000  # a server takes 1,000,000
_PATIENCE_S = 10.0


class Uploader:
    """Copies journals into one tracking store. Every method, the constructor too, raises one of FAILURES."""

    def __init__(self, store: Store) -> None:
        assert store.uri is not None
        self._artifact_root = store.artifact_root
        self._own_database = store.uri.removeprefix("sqlite:///") if store.is_in_outputs else None
        self._store = hashlib.sha256(store.uri.encode()).hexdigest()[:16]  # no passwords in files
        self._experiments: dict[str, str] = {}
        self._known: dict[str, str] = {}  # runs that the store had when last asked, each with the uid of its record
        self._parents: dict[str, str] = {}  # run ids of studies, by uid
        self._locations: dict[str, str] = {}  # of artifacts, by experiment
        self._tables = Tables(store.uri) if Tables.may_be_at(store.uri) else None
        self._agreed = False  # whether it was seen that the tables are as they are known here
        self._childless: set[str] = set()  # studies whose first child was still to be sent
        self.n_lost = 0  # runs that were sent once and are no longer in the store
        self._n_forgotten = 0  # times that the store was found to have lost something that these remember
        with _first_start(store.artifact_root):
            _make_tables(store.uri)
            self._client = MlflowClient(store.uri)
            self.reach()

    def reach(self) -> None:
        """Returns if the store answers."""
        self._client.search_experiments(max_results=1)

    def push(self, folder: RunFolder) -> bool:
        """Sends what the store lacks of this trial; True when nothing is left.

        Raises Busy while another one sends; DamagedJournal when a line is damaged, but only once what can
        still be read is sent.
        """
        with folder.mirror_lock():
            return self._push_locked(folder)

    def _push_locked(self, folder: RunFolder) -> bool:
        """As `push`. What this process remembers of the store may have been deleted since: then it asks again, once."""
        check_length(folder)
        try:
            return self._push_once(folder)
        except MlflowException as error:
            if error.error_code not in _GONE:
                raise
            self._forget()
            return self._push_once(folder)

    def _push_once(self, folder: RunFolder) -> bool:
        sent = self._sent_of(folder)
        damage: list[DamagedJournal] = []
        artifacts: list[Damaged] = []
        for portion, offset in portions(journal.read(folder.journal, sent.offset, damage), sent.offset):
            if sent.run_id is None and portion.start is None:
                raise damage[0] if damage else DamagedJournal(folder.journal, 1, "it does not begin with its start")
            created = sent.run_id is None and self._find_or_create(folder, sent, portion)
            artifacts += self._send(folder, sent, portion, created)
            sent.offset = (
                sent.offset if damage or artifacts else offset
            )  # what is behind a damaged line is sent each time anew
            sent.save()
        for problem in (*damage, *artifacts):
            raise problem
        return folder.journal.exists() and sent.offset == folder.journal.stat().st_size

    def push_whole(self, folders: Sequence[RunFolder]) -> set[RunFolder]:
        """Sends, at a tenth of the price, those trials that have ended and of which the store has nothing.

        Returns them and those of which nothing was left to be sent. The rest is for `push`: what is only partly
        sent, or is sent by others; all, when the store's tables are not at hand, or not as they are known here.
        """
        done = {folder for folder in folders if self.has_all(folder)}
        with ExitStack() as locks:
            mine = [folder for folder in folders if folder not in done and self._tables and _entered(locks, folder)]
            whole = [found for folder in mine if (found := self._whole(folder)) is not None]
            if not self._agreed and (sample := next((one for one in whole if one.run.dataset), None)):
                whole.remove(sample)
                self._compare(sample)
                done.add(sample.folder)
            if self._tables is not None and self._agreed:
                done.update(self._write(self._tables, whole))
        return done

    def _compare(self, sample: "_Whole") -> None:
        """Sends a run by the client, to see whether the tables then have what would have been written to them."""
        assert self._tables is not None
        n_forgotten, schema = self._n_forgotten, self._tables.schema()
        self._push_locked(sample.folder)
        if self._n_forgotten > n_forgotten:  # it is not where it was to be
            return
        run_id = SyncCursor(sample.folder, self._store).run_id
        assert run_id is not None
        as_sent = sample.run._replace(run_id=run_id, artifact_uri=sample.artifact_uri(run_id))
        try:
            self._agreed = self._tables.agree(as_sent, schema)
        except Changed:  # meanwhile: the next sample decides
            return
        if not self._agreed:
            self._tables = None
            logging.getLogger(__name__).warning("MLflow's tables are not as they are known here; runs are sent singly")

    def _write(self, tables: Tables, whole: Sequence["_Whole"]) -> list[RunFolder]:
        """Those that were sent. Of the others the store has a run already, or another process is making it; or the
        experiment or the study's run was deleted, which `push` says.

        Nothing here waits for the disk but the store: what `mlflow.json` says is needed by processes that live now;
        one that is started after a power cut asks the store instead (`_childless` is empty then).
        """
        unsure = [one.uid for one in whole if one.sent.attempted or one.parent not in self._childless]
        try:
            in_store = tables.existing([one.run for one in whole], UID_TAG, unsure)
        except Gone:
            self._forget()
            return []
        for one in whole:
            one.sent.attempted = True
            one.sent.save(durable=False)
        new = [one for one in whole if in_store.isdisjoint((one.run.run_id, (one.run.experiment_id, one.uid)))]
        for one in new:  # under an id that is the same in the next try, so that nothing is left over
            self._store_artifacts(one)
        try:
            tables.write([one.run for one in new])
        except sqlalchemy.exc.IntegrityError:  # another process, that does not see our locks, was faster
            return []
        except Gone:
            self._forget()
            return []
        except Changed as change:
            self._agreed = False
            self._tables = None if change.is_migrated else tables
            until = "" if change.is_migrated else " until they are compared again"
            logging.getLogger(__name__).warning("MLflow's tables have changed; runs are sent singly%s", until)
            return []
        for one in new:
            one.sent.run_id, one.sent.offset = one.run.run_id, one.offset
            one.sent.save(durable=False)
            self._known[one.run.run_id] = one.uid
        return [one.folder for one in new]

    def _store_artifacts(self, one: "_Whole") -> None:
        """To where the client would send them; the store has no such run yet, so nobody reads a half of one."""
        is_local = one.run.artifact_uri.startswith("file:///")
        repository = None
        for artifact, above in artifact_files(one.folder, one.end):
            self._check_place(one.run.artifact_uri, artifact, above)
            if is_local:  # MLflow's own way of copying costs 1 ms a file
                folder = os.path.join(local_file_uri_to_path(one.run.artifact_uri), above or "")
                os.makedirs(folder, exist_ok=True)
                shutil.copy2(artifact, folder)
                continue
            repository = repository or get_artifact_repository(one.run.artifact_uri, self._client.tracking_uri)
            repository.log_artifact(str(artifact), above)

    def _check_place(self, artifact_uri: str, artifact: Path, above: str | None) -> None:
        """Raise MlflowException if the artifact would leave the outputs, as by a link, though the store is in them."""
        name = os.path.join(above or "", artifact.name)
        if not self._may_hold_artifacts(artifact_uri, name):
            problem = f"the store has {name} go to {artifact_uri}, which is not below {self._artifact_root}"
            raise MlflowException(f"{problem}; send the runs to a store of your own: python -m sweep.sync --uri URI")

    def _may_hold_artifacts(self, uri: str, name: str = "") -> bool:
        """Whether artifacts, or the one of that name, may go there.

        A store that came with the outputs may only name places in them.
        """
        if self._own_database is None:
            return True
        assert self._artifact_root is not None
        is_local = uri.startswith("/") or uri.startswith("file:///")
        return is_local and is_inside(Path(local_file_uri_to_path(uri), name), self._artifact_root)

    def _whole(self, folder: RunFolder) -> "_Whole | None":
        """A trial of which nothing was sent, if it can be sent whole: it has begun and ended once, and has no curves
        to be drawn."""
        sent = SyncCursor(folder, self._store)
        try:
            records = list(journal.read(folder.journal)) if sent.run_id is None else []
        except DamagedJournal:  # `push` says so
            return None
        kinds = [record["kind"] for record, _ in records]
        if not records or (kinds[0], kinds[-1]) != ("start", "end") or len({*kinds[1:-1]} - {"metrics"}) > 0:
            return None
        portion, (end, offset) = Chunk([record for record, _ in records]), records[-1]
        assert portion.start is not None
        if offset != folder.journal.stat().st_size or folder.curves.name in artifact_names(folder, end):
            return None
        if any(damage_of(artifact) for artifact, _ in artifact_files(folder, end)):
            return None
        start, parent = portion.start, self._parent(folder, portion.start)
        experiment = self._experiment(start["experiment"])
        location = self._location(experiment)
        uid = start["uid"]
        run_id = hashlib.sha256(f"{experiment} {uid}".encode()).hexdigest()[:32]
        run = WholeRun(
            run_id=run_id,
            experiment_id=int(experiment),
            experiment=(start["experiment"], location),
            artifact_uri=_artifact_uri(location, run_id),
            name=start["name"],
            status=end["status"],
            start_time=start["time"],
            end_time=end["time"],
            params=portion.params,
            tags=portion.tags | _own_tags(uid, parent),
            points=portion.points,
            dataset=_dataset_input(start["dataset"]) if start.get("dataset") else None,
        )
        return _Whole(folder, sent, offset, end, uid, parent, location, run) if run.is_valid() else None

    def _location(self, experiment: str) -> str:
        """Where the artifacts of the experiment's runs are."""
        if experiment not in self._locations:
            found = self._client.get_experiment(experiment)
            location = found.artifact_location
            if not self._may_hold_artifacts(location):  # the outputs were moved, or are somebody else's
                location = self._own_location(found.name)
            self._locations[experiment] = location
        return self._locations[experiment]

    def _own_location(self, experiment_name: str) -> str:
        """Where an embedded store has the artifacts of the experiment's runs."""
        assert self._artifact_root is not None
        return (self._artifact_root / hashlib.sha256(experiment_name.encode()).hexdigest()[:12]).as_uri()

    def has_all(self, folder: RunFolder) -> bool:
        """Whether nothing was left when the trial was last pushed, by whatever process.

        The store is asked only once it has lost some run. Raises DeletedInStore then, too.
        """
        sent = SyncCursor(folder, self._store)
        if sent.run_id is None or sent.offset != folder.journal.stat().st_size:
            return False
        return self.n_lost == 0 or self._has(sent.run_id, journal.uid(folder.journal) or "")

    def abandon(self, folder: RunFolder) -> None:
        """Marks the run of a trial whose process died as KILLED. It is RUNNING again once it is resumed.

        Raises DamagedJournal if the trial did not die: then its record has lost its end.
        """
        run_id = self._sent_of(folder).run_id
        if run_id is not None and not folder.is_running() and journal.status(folder.journal) is None:
            self._client.set_terminated(run_id, "KILLED")
            require_not_ended(folder)

    def _sent_of(self, folder: RunFolder) -> SyncCursor:
        sent = SyncCursor(folder, self._store)
        if sent.run_id is not None and not self._has(sent.run_id, journal.uid(folder.journal) or ""):
            sent.run_id, sent.offset, sent.attempted = None, 0, True
            self.n_lost += 1
        return sent

    def _has(self, run_id: str, uid: str | None) -> bool:
        """Whether the store still has the run; it may have been emptied, or replaced by an older copy.

        uid: of the record that is sent there. A run that was made for another one is none: the folder may be somebody
        else's, and name any run of the store. None for whichever. Raises DeletedInStore for a run that is marked as
        deleted.
        """
        if uid is None or self._known.get(run_id) != uid:
            try:
                run = self._client.get_run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return False
            if uid is not None and run.data.tags.get(UID_TAG) != uid:
                return False
            self._check_active(run)
            if uid is not None:
                self._known[run_id] = uid
        return True

    def _check_active(self, run: Run) -> None:
        """Raises DeletedInStore if the run, or its whole experiment, is marked as deleted."""
        if run.info.lifecycle_stage != LifecycleStage.DELETED:
            return
        experiment = self._client.get_experiment(run.info.experiment_id)
        if experiment.lifecycle_stage == LifecycleStage.DELETED:
            raise self._deleted("experiment", experiment.name, experiment.experiment_id)
        raise self._deleted("run", run.info.run_name or "", run.info.run_id)

    def _deleted(self, kind: str, name: str, identity: str) -> DeletedInStore:
        """kind: experiment or run, as in the options of MLflow's commands."""
        shown = without_password(self._client.tracking_uri)
        restore = command("mlflow", f"{kind}s", "restore", f"--{kind}-id", identity)
        remedy = f"{kind} '{name}' was deleted in MLflow; bring it back"
        if shown != self._client.tracking_uri:
            remedy += ", with the password in place of ***,"
        remedy = " ".join(remedy.split())
        return DeletedInStore(f"{remedy} with:  {with_variable('MLFLOW_TRACKING_URI', shown, restore)}")

    def _forget(self) -> None:
        """Has the store asked again about all that this process remembers of it."""
        for memory in (self._experiments, self._known, self._parents, self._locations, self._childless):
            memory.clear()
        self._n_forgotten += 1

    def _find_or_create(self, folder: RunFolder, sent: SyncCursor, portion: Chunk) -> bool:
        """Gives the trial its MLflow run; True when it had to be made, with the tags of the portion, its first."""
        assert portion.start is not None, "a journal begins with its start"
        experiment, uid = self._experiment(portion.start["experiment"]), portion.start["uid"]
        parent = self._parent(folder, portion.start)
        if sent.attempted or parent not in self._childless:
            sent.run_id = self._find_own(experiment, uid)
        if created := sent.run_id is None:
            self._check_parent(parent)
            sent.attempted = True
            sent.save()  # a crash from here until the next save must not lead to a second run
            sent.run_id = self._create(portion.start, portion.tags | _own_tags(uid, parent))
        assert sent.run_id is not None
        self._known[sent.run_id] = uid
        return created

    def _parent(self, folder: RunFolder, start: journal.Record) -> str | None:
        """The MLflow run of the study that a trial belongs to, made here if the study was not sent before."""
        parent = start.get("parent")
        if parent is None:
            return None
        if (uid := parent["uid"]) not in self._parents:
            study = RunFolder(_study_above(folder.path, parent["folder"]))
            own_start = journal.first(study.journal, "start")
            if own_start is not None and own_start["uid"] == uid:
                run_id = self._claim(study, own_start)
            else:  # the trial was moved
                run_id = self._find_own(self._experiment(start["experiment"]), uid)
                run_id = run_id or self._create(start | {"name": parent["name"]}, {UID_TAG: uid})
            if self._find(self._experiment(start["experiment"]), PARENT_TAG, run_id) is None:
                self._childless.add(run_id)
            self._parents[uid] = run_id
        return self._parents[uid]

    def _claim(self, study: RunFolder, start: journal.Record) -> str:
        """The study's run; when there is none, one that its journal fills in later."""
        with _in_turn(study):
            sent = self._sent_of(study)
            if sent.run_id is None:
                self._find_or_create(study, sent, Chunk([start]))
                sent.save()
            assert sent.run_id is not None
            return sent.run_id

    def _check_parent(self, parent: str | None) -> None:
        """Raises if the study's run was deleted since it was found: MLflow itself would take runs below it."""
        if parent is not None and not self._has(parent, None):
            raise MlflowException(f"the study's run {parent} is gone", RESOURCE_DOES_NOT_EXIST)

    def _find_own(self, experiment: str, uid: str) -> str | None:
        """The run that was made for a trial or study. Raises DeletedInStore if it is marked as deleted."""
        if (run := self._find(experiment, UID_TAG, uid)) is None:
            return None
        self._check_active(run)
        return run.info.run_id

    def _find(self, experiment: str, tag: str, value: str) -> Run | None:
        """A run with such a tag."""
        found = self._client.search_runs([experiment], f"tags.`{tag}` = '{value}'", ViewType.ALL, max_results=1)
        return found[0] if found else None

    def _create(self, start: journal.Record, tags: dict[str, str]) -> str:
        experiment = self._experiment(start["experiment"])
        run = self._client.create_run(experiment, start_time=start["time"], tags=tags, run_name=start["name"])
        return run.info.run_id

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                location = None if self._artifact_root is None else self._own_location(name)
                try:
                    self._experiments[name] = self._client.create_experiment(name, location)
                except MlflowException:  # another process was faster
                    found = self._client.get_experiment_by_name(name)
                    if found is None:
                        raise
            if found is not None:
                if found.lifecycle_stage == LifecycleStage.DELETED:
                    raise self._deleted("experiment", name, found.experiment_id)
                self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def _send(self, folder: RunFolder, sent: SyncCursor, portion: Chunk, created: bool) -> list[Damaged]:
        """In as few calls as MLflow's limits allow: each costs 4 to 10 ms, whatever it carries. The artifacts that are
        damaged, and so not sent."""
        run_id, is_first = sent.run_id, sent.offset == 0
        assert run_id is not None
        params = portion.params if is_first else {}  # MLflow's cannot change, a resumed trial's do not
        for batch in _batches(
            [Metric(*point) for point in portion.points],
            [Param(key, value) for key, value in params.items()],
            [] if created else [RunTag(key, value) for key, value in portion.tags.items()],
        ):
            self._client.log_batch(run_id, batch["metrics"], batch["params"], batch["tags"])
        if is_first and portion.start is not None and portion.start.get("dataset"):
            self._client.log_inputs(run_id, [_dataset_input(portion.start["dataset"])])
        damage: list[Damaged] = []
        if portion.end is not None:
            damage = self._send_artifacts(folder, run_id, portion.end)
            self._client.set_terminated(run_id, portion.end["status"], portion.end["time"])
        elif portion.start is not None and not created:
            self._client.update_run(run_id, status="RUNNING")  # also when it was killed and goes on
        return damage

    def _send_artifacts(self, folder: RunFolder, run_id: str, end: journal.Record) -> list[Damaged]:
        """The files and folders that the record names, where they exist, under their paths below the trial's folder;
        but for those that are damaged, which are returned."""
        if folder.curves.name in artifact_names(folder, end):
            problem = drawing_problem(lambda: ensure_curves(folder))
            if problem is not None:
                logging.getLogger(__name__).warning("cannot draw %s: %s", folder.curves, problem)
        files = list(artifact_files(folder, end))
        if self._own_database is not None:
            info = self._client.get_run(run_id).info
            uri = str(info.artifact_uri)
            if not self._may_hold_artifacts(uri):
                uri = _artifact_uri(self._location(info.experiment_id), run_id)
                _set_artifact_uri(self._own_database, run_id, uri)
            for artifact, above in files:
                self._check_place(uri, artifact, above)
        damage = {artifact: problem for artifact, _ in files if (problem := damage_of(artifact)) is not None}
        for artifact, above in files:
            if artifact not in damage:
                self._client.log_artifact(run_id, str(artifact), above)
        return list(damage.values())


class _Whole(NamedTuple):
    """A trial that can be sent whole. offset: behind its `end`. location: of its experiment's artifacts."""

    folder: RunFolder
    sent: SyncCursor
    offset: int
    end: journal.Record
    uid: str
    parent: str | None
    location: str
    run: WholeRun

    def artifact_uri(self, run_id: str) -> str:
        return _artifact_uri(self.location, run_id)


def check_length(folder: RunFolder) -> None:
    """Raises DamagedJournal if the journal has become shorter than what a store has got of it."""
    if journal.whole_size(folder.journal) < (n_bytes := most_sent(folder)):
        raise DamagedJournal(folder.journal, None, f"it has fewer than the {n_bytes} bytes that MLflow got of it")


def _batches(metrics: list[Metric], params: list[Param], tags: list[RunTag]) -> Iterator[dict[str, list[Any]]]:
    """In as few portions as MLflow's limits allow."""
    batch: dict[str, list[Any]] = {"params": [], "tags": [], "metrics": []}
    n_entities = n_bytes = 0
    for kind, entity in chain(
        (("params", param) for param in params),
        (("tags", tag) for tag in tags),
        (("metrics", metric) for metric in metrics),
    ):
        size = len(json.dumps([entity.key, entity.value])) + 100  # with its time, step and punctuation
        if len(batch[kind]) == _MAX_OF_A_KIND[kind] or n_entities == _MAX_ENTITIES or n_bytes + size > _MAX_BYTES:
            yield batch
            batch = {"params": [], "tags": [], "metrics": []}
            n_entities = n_bytes = 0
        batch[kind].append(entity)
        n_entities, n_bytes = n_entities + 1, n_bytes + size
    if n_entities:
        yield batch


def _study_above(folder: Path, recorded: str) -> Path:
    """The folder of the study that a trial lies in. A record that names a folder elsewhere is not followed."""
    is_above = recorded in ("../..", "../../..")
    return Path(os.path.normpath(folder / recorded)) if is_above else folder


def _own_tags(uid: str, parent: str | None) -> dict[str, str]:
    return {UID_TAG: uid} if parent is None else {UID_TAG: uid, PARENT_TAG: parent}


def _artifact_uri(location: str, run_id: str) -> str:
    return append_to_uri_path(location, run_id, "artifacts")


def _set_artifact_uri(database: str, run_id: str, uri: str) -> None:
    """Have the store look for a run's artifacts where they are put. Its client cannot."""
    with closing(sqlite3.connect(database, timeout=_PATIENCE_S)) as connection, connection:
        connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (uri, run_id))


def _dataset_input(dataset: dict[str, Any]) -> DatasetInput:
    source, profile = json.dumps(dataset["source"]), json.dumps(dataset["profile"])
    entity = Dataset(dataset["name"], dataset["digest"], "local", source, profile=profile)
    return DatasetInput(entity, [InputTag("mlflow.data.context", "training")])


def _entered(stack: ExitStack, folder: RunFolder) -> bool:
    """Whether the mirror lock could be taken, which the stack now holds."""
    try:
        stack.enter_context(folder.mirror_lock())
    except Busy:
        return False
    return True


@contextmanager
def _in_turn(folder: RunFolder) -> Iterator[None]:
    """Holds the mirror lock; waits for it, since it is held for a moment only. Raises Busy."""
    deadline = time.monotonic() + _PATIENCE_S
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(folder.mirror_lock())
                break
            except Busy:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.02)
        yield


def _make_tables(uri: str) -> None:
    """Makes a new SQLite store all at once: MLflow, killed while it makes one, leaves a file it cannot use."""
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or "?" in uri or path.exists():
        return
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as folder:
        made = Path(folder) / path.name
        MlflowClient(sqlite_url(made)).search_experiments(max_results=1)
        if not path.exists():
            os.rename(made, path)


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
