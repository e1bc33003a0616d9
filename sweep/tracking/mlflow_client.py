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
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

import sqlalchemy.exc
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from sweep.tracking import journal
from sweep.tracking.chunks import Chunk, SyncCursor, artifact_files, artifact_names, most_sent, read_chunks
from sweep.tracking.folders import Busy, RunFolder
from sweep.tracking.mlflow_artifacts import ArtifactPlaces, artifact_uri_of
from sweep.tracking.mlflow_bulk import Changed, CompleteRun, Gone, Tables
from sweep.tracking.mlflow_runs import UID_TAG, StoredRuns, own_tags
from sweep.tracking.store import Store, sqlite_url
from sweep.tracking.stored_run import require_not_ended
from sweep.utils.checked_file import damage_of
from sweep.utils.errors import Damaged, DamagedJournal, DeletedInStore

# A store that is down, full or refuses.
FAILURES = (MlflowException, DeletedInStore, sqlalchemy.exc.SQLAlchemyError, OSError)
_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the latter is also said of what is marked as deleted
_MAX_ENTITIES = 1000  # in one log_batch; MLflow's own limits, here and below
_MAX_OF_A_KIND = {"metrics": 1000, "params": 100, "tags": 100}
_MAX_BYTES = 900_000  # a server takes 1,000,000


class Uploader:
    """Copies journals into one tracking store. Every method, the constructor too, raises one of FAILURES."""

    def __init__(self, store: Store) -> None:
        assert store.uri is not None
        self._store = hashlib.sha256(store.uri.encode()).hexdigest()[:16]  # no passwords in files
        self._tables = Tables(store.uri) if Tables.may_be_at(store.uri) else None
        self._agreed = False  # whether it was seen that the tables are as they are known here
        with _first_start(store.lock):
            _make_tables(store.uri)
            self._client = MlflowClient(store.uri)
            self.reach()
        self._artifacts = ArtifactPlaces(self._client, store)
        self._runs = StoredRuns(self._client, self._store, self._artifacts)

    @property
    def n_lost(self) -> int:
        """How many runs were sent once and are no longer in the store."""
        return self._runs.n_lost

    def reach(self) -> None:
        """Returns if the store answers."""
        self._client.search_experiments(max_results=1)

    def push(self, folder: RunFolder) -> bool:
        """Sends what the store lacks of this trial; True when nothing is left.

        Raises Busy while another one sends; DamagedJournal when a line is damaged, but only once what can
        still be read is sent.
        """
        with folder.upload_lock():
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
        sent = self._runs.cursor(folder)
        damage: list[DamagedJournal] = []
        artifacts: list[Damaged] = []
        for chunk, offset in read_chunks(journal.read(folder.journal, sent.offset, damage), sent.offset):
            if sent.run_id is None and chunk.start is None:
                raise damage[0] if damage else DamagedJournal(folder.journal, 1, "it does not begin with its start")
            created = sent.run_id is None and self._runs.find_or_create(folder, sent, chunk)
            artifacts += self._send(folder, sent, chunk, created)
            sent.offset = (
                sent.offset if damage or artifacts else offset
            )  # what is behind a damaged line is sent each time anew
            sent.save()
        for problem in (*damage, *artifacts):
            raise problem
        return folder.journal.exists() and sent.offset == folder.journal.stat().st_size

    def push_complete(self, folders: Sequence[RunFolder]) -> set[RunFolder]:
        """Sends, at a tenth of the price, those trials that have ended and of which the store has nothing.

        Returns them and those of which nothing was left to be sent. The rest is for `push`: what is only partly
        sent, or is sent by others; all, when the store's tables are not at hand, or not as they are known here.
        """
        done = {folder for folder in folders if self.has_all(folder)}
        with ExitStack() as locks:
            mine = [folder for folder in folders if folder not in done and self._tables and _entered(locks, folder)]
            whole = [found for folder in mine if (found := self._complete(folder)) is not None]
            if not self._agreed and (sample := next((one for one in whole if one.run.dataset), None)):
                whole.remove(sample)
                self._compare(sample)
                done.add(sample.folder)
            if self._tables is not None and self._agreed:
                done.update(self._write(self._tables, whole))
        return done

    def _compare(self, sample: "_Complete") -> None:
        """Sends a run by the client, to see whether the tables then have what would have been written to them."""
        assert self._tables is not None
        n_forgotten, schema = self._runs.n_forgotten, self._tables.schema()
        self._push_locked(sample.folder)
        if self._runs.n_forgotten > n_forgotten:  # it is not where it was to be
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

    def _write(self, tables: Tables, whole: Sequence["_Complete"]) -> list[RunFolder]:
        """Those that were sent. Of the others the store has a run already, or another process is making it; or the
        experiment or the study's run was deleted, which `push` says.

        Nothing here waits for the disk but the store: what `mlflow.json` says is needed by processes that live now;
        one that is started after a power cut asks the store instead (`may_have_children` is true then).
        """
        unsure = [one.uid for one in whole if one.sent.attempted or self._runs.may_have_children(one.parent)]
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
            self._artifacts.store(one.folder, one.end, one.run.artifact_uri)
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
            self._runs.remember(one.run.run_id, one.uid)
        return [one.folder for one in new]

    def _complete(self, folder: RunFolder) -> "_Complete | None":
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
        chunk, (end, offset) = Chunk([record for record, _ in records]), records[-1]
        assert chunk.start is not None
        if offset != folder.journal.stat().st_size or folder.curves.name in artifact_names(folder, end):
            return None
        if any(damage_of(artifact) for artifact, _ in artifact_files(folder, end)):
            return None
        start, parent = chunk.start, self._runs.parent(folder, chunk.start)
        experiment = self._runs.experiment(start["experiment"])
        location = self._artifacts.location(experiment)
        uid = start["uid"]
        run_id = hashlib.sha256(f"{experiment} {uid}".encode()).hexdigest()[:32]
        run = CompleteRun(
            run_id=run_id,
            experiment_id=int(experiment),
            experiment=(start["experiment"], location),
            artifact_uri=artifact_uri_of(location, run_id),
            name=start["name"],
            status=end["status"],
            start_time=start["time"],
            end_time=end["time"],
            params=chunk.params,
            tags=chunk.tags | own_tags(uid, parent),
            points=chunk.points,
            dataset=_dataset_input(start["dataset"]) if start.get("dataset") else None,
        )
        return _Complete(folder, sent, offset, end, uid, parent, location, run) if run.is_valid() else None

    def has_all(self, folder: RunFolder) -> bool:
        """Whether nothing was left when the trial was last pushed, by whatever process.

        The store is asked only once it has lost some run. Raises DeletedInStore then, too.
        """
        sent = SyncCursor(folder, self._store)
        if sent.run_id is None or sent.offset != folder.journal.stat().st_size:
            return False
        return self.n_lost == 0 or self._runs.has(sent.run_id, journal.uid(folder.journal) or "")

    def abandon(self, folder: RunFolder) -> None:
        """Marks the run of a trial whose process died as KILLED. It is RUNNING again once it is resumed.

        Raises DamagedJournal if the trial did not die: then its record has lost its end.
        """
        run_id = self._runs.cursor(folder).run_id
        if run_id is not None and not folder.is_running() and journal.status(folder.journal) is None:
            last = journal.last(folder.journal)  # the same time, however often it is said
            self._client.set_terminated(run_id, "KILLED", None if last is None else last["time"])
            require_not_ended(folder)

    def _forget(self) -> None:
        """Has the store asked again about all that this process remembers of it."""
        self._runs.forget()
        self._artifacts.forget()

    def _send(self, folder: RunFolder, sent: SyncCursor, chunk: Chunk, created: bool) -> list[Damaged]:
        """In as few calls as MLflow's limits allow: each costs 4 to 10 ms, whatever it carries. The artifacts that are
        damaged, and so not sent."""
        run_id, is_first = sent.run_id, sent.offset == 0
        assert run_id is not None
        params = chunk.params if is_first else {}  # MLflow's cannot change, a resumed trial's do not
        for batch in _batches(
            [Metric(*point) for point in chunk.points],
            [Param(key, value) for key, value in params.items()],
            [] if created else [RunTag(key, value) for key, value in chunk.tags.items()],
        ):
            self._client.log_batch(run_id, batch["metrics"], batch["params"], batch["tags"])
        if is_first and chunk.start is not None and chunk.start.get("dataset"):
            self._client.log_inputs(run_id, [_dataset_input(chunk.start["dataset"])])
        damage: list[Damaged] = []
        if chunk.end is not None:
            damage = self._artifacts.send(folder, run_id, chunk.end)
            self._client.set_terminated(run_id, chunk.end["status"], chunk.end["time"])
        elif chunk.start is not None and not created:
            self._client.update_run(run_id, status="RUNNING")  # also when it was killed and goes on
        return damage


class _Complete(NamedTuple):
    """A trial that can be sent whole. offset: behind its `end`. location: of its experiment's artifacts."""

    folder: RunFolder
    sent: SyncCursor
    offset: int
    end: journal.Record
    uid: str
    parent: str | None
    location: str
    run: CompleteRun

    def artifact_uri(self, run_id: str) -> str:
        return artifact_uri_of(self.location, run_id)


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


def _dataset_input(dataset: dict[str, Any]) -> DatasetInput:
    source, profile = json.dumps(dataset["source"]), json.dumps(dataset["profile"])
    entity = Dataset(dataset["name"], dataset["digest"], "local", source, profile=profile)
    return DatasetInput(entity, [InputTag("mlflow.data.context", "training")])


def _entered(stack: ExitStack, folder: RunFolder) -> bool:
    """Whether the mirror lock could be taken, which the stack now holds."""
    try:
        stack.enter_context(folder.upload_lock())
    except Busy:
        return False
    return True


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
def _first_start(path: Path | None) -> Iterator[None]:
    """One process at a time makes the tables of an embedded store: MLflow's own first start races."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
