"""Copies journals into an MLflow tracking store. All uploads go through this module.

Uploads are idempotent, so they can be repeated after any failure. A run is found again by its tag `sweep.uid`. A
metric row carries the time from the journal, and an MLflow store keeps one row per run, key, step, time and value.
Params, tags and artifacts are overwritten with the same content. `mlflow.json` stores how much was sent, which only
saves work.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import takewhile
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
from sweep.tracking.chunks import (
    MODEL,
    REGISTER_TAG,
    Chunk,
    SyncCursor,
    artifact_files,
    artifact_names,
    key_of_store,
    may_send,
    most_sent,
    read_chunks,
)
from sweep.tracking.folders import Busy, RunFolder
from sweep.tracking.mlflow_artifacts import ArtifactPlaces, artifact_uri_of
from sweep.tracking.mlflow_batches import batches
from sweep.tracking.mlflow_bulk import Changed, CompleteRun, Gone, Tables
from sweep.tracking.mlflow_creation import first_start, make_tables
from sweep.tracking.mlflow_runs import UID_TAG, StoredRuns, own_tags
from sweep.tracking.store import Store
from sweep.tracking.stored_run import require_not_ended
from sweep.utils.checked_file import damage_of
from sweep.utils.errors import Damaged, DamagedJournal, DeletedInStore

# Raised if a store is down, full, or rejects a request.
FAILURES = (MlflowException, DeletedInStore, sqlalchemy.exc.SQLAlchemyError, OSError)
_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the latter also for what is marked as deleted


class Uploader:
    """Copies journals into one tracking store. Every method, including the constructor, may raise one of FAILURES."""

    def __init__(self, store: Store) -> None:
        assert store.uri is not None
        self._store = key_of_store(store.uri)
        self._tables = Tables(store.uri) if Tables.may_be_at(store.uri) else None
        self._agreed = False  # whether `Tables.agree` has accepted the tables
        with first_start(store.lock):
            make_tables(store.uri)
            self._client = MlflowClient(store.uri)
            self.reach()
        self._artifacts = ArtifactPlaces(self._client, store)
        self._runs = StoredRuns(self._client, self._store, self._artifacts)

    @property
    def n_lost(self) -> int:
        """The number of runs that were sent earlier and are no longer in the store."""
        return self._runs.n_lost

    def reach(self) -> None:
        """Return if the store answers; otherwise raise one of FAILURES."""
        self._client.search_experiments(max_results=1)

    def claim(self, folder: RunFolder) -> str:
        """Return the MLflow run id of a run whose record has begun. If it is missing, make one for `push` to fill.

        Raises:
            Busy: another process is sending the run for long.
        """
        start = journal.first(folder.journal, "start")
        assert start is not None
        try:
            return self._runs.claim(folder, start)
        except MlflowException as error:
            if error.error_code not in _GONE:
                raise
            self._forget()
            return self._runs.claim(folder, start)

    def push(self, folder: RunFolder) -> bool:
        """Send everything that the store does not have yet of this run.

        Returns:
            True if nothing is left to send.

        Raises:
            Busy: another process is sending the run.
            DamagedJournal: a line of the journal is damaged. The readable lines were sent before.
            Damaged: an artifact is damaged. The others were sent before.
        """
        with folder.upload_lock():
            return self._push_locked(folder)

    def _push_locked(self, folder: RunFolder) -> bool:
        """Do the work of `push` while its lock is held.

        If something that this process has cached was deleted in the store, clear the caches and try once more.
        """
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
        allowed = may_send(folder)
        records = takewhile(lambda read: read[1] <= allowed, journal.read(folder.journal, sent.offset, damage))
        for chunk, offset in read_chunks(records, sent.offset):
            if sent.run_id is None and chunk.start is None:
                raise damage[0] if damage else DamagedJournal(folder.journal, 1, "it does not begin with its start")
            created = sent.run_id is None and self._runs.find_or_create(folder, sent, chunk)
            artifacts += self._send(folder, sent, chunk, created)
            # The offset stays before any damage, so that everything from there on is sent again next time.
            sent.offset = sent.offset if damage or artifacts else offset
            sent.save()
        if damage:
            journal.check(folder.journal)  # names the first damaged line, which may be before the offset
        for problem in (*damage, *artifacts):
            raise problem
        return folder.journal.exists() and sent.offset == folder.journal.stat().st_size

    def push_complete(self, folders: Sequence[RunFolder]) -> set[RunFolder]:
        """Send complete runs that are not in the store yet, at about a tenth of the cost of `push`.

        Leave all other runs to `push`: runs that were partly sent, and runs that another process is sending. All runs
        are left to `push` if the store is not a database that can be written to directly, or if its tables are not as
        expected.

        Returns:
            The runs that are completely sent, now or earlier.
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
        """Send a run by the client, and check that the client wrote the rows that `_write` would have written."""
        assert self._tables is not None
        n_forgotten, schema = self._runs.n_forgotten, self._tables.schema()
        self._push_locked(sample.folder)
        if self._runs.n_forgotten > n_forgotten:  # the run is not under the expected experiment or parent
            return
        run_id = SyncCursor(sample.folder, self._store).run_id
        assert run_id is not None
        as_sent = sample.run._replace(run_id=run_id, artifact_uri=sample.artifact_uri(run_id))
        try:
            self._agreed = self._tables.agree(as_sent, schema)
        except Changed:  # the tables changed meanwhile, so the next sample decides
            return
        if not self._agreed:
            self._tables = None
            logging.getLogger(__name__).warning("MLflow's tables are not as expected; runs are sent one by one")

    def _write(self, tables: Tables, whole: Sequence["_Complete"]) -> list[RunFolder]:
        """Write complete runs into the tables, and return the folders of those that were written.

        A run is left out if the store already has it, or if another process is creating it. No run is written if the
        experiment or the study's run was deleted. `push` then reports that.

        Only the store itself syncs to the disk. `mlflow.json` is written without a sync, since only processes that are
        alive now need it. A process that starts after a power cut asks the store instead (`may_have_children` is then
        true).
        """
        unsure = [
            one.uid
            for one in whole
            if one.sent.attempted or self._runs.may_have_children(one.parent) or one.folder.copied.exists()
        ]
        try:
            in_store = tables.existing([one.run for one in whole], UID_TAG, unsure)
        except Gone:
            self._forget()
            return []
        for one in whole:
            one.sent.attempted = True
            one.sent.save(durable=False)
        new = [one for one in whole if in_store.isdisjoint((one.run.run_id, (one.run.experiment_id, one.uid)))]
        for one in new:  # the id is the same on the next try, so no files are left over
            self._artifacts.store(one.folder, one.end, one.run.artifact_uri)
        try:
            tables.write([one.run for one in new])
        except sqlalchemy.exc.IntegrityError:  # a process that does not see our locks was faster
            return []
        except Gone:
            self._forget()
            return []
        except Changed as change:
            self._agreed = False
            self._tables = None if change.is_migrated else tables
            until = "" if change.is_migrated else " until they are compared again"
            logging.getLogger(__name__).warning("MLflow's tables have changed; runs are sent one by one%s", until)
            return []
        for one in new:
            one.sent.run_id, one.sent.offset = one.run.run_id, one.offset
            one.sent.save(durable=False)
            self._runs.remember(one.run.run_id, one.uid)
        return [one.folder for one in new]

    def _complete(self, folder: RunFolder) -> "_Complete | None":
        """Return a run that can be written to the tables at once, else None.

        Nothing of it may have been sent. Its journal must begin with its only `start` and end with its only `end`. It
        must list no `curves.png` and no model, which would have to be made first, and no damaged artifact.
        """
        sent = SyncCursor(folder, self._store)
        try:
            records = list(journal.read(folder.journal)) if sent.run_id is None else []
        except DamagedJournal:  # `push` reports it
            return None
        kinds = [record["kind"] for record, _ in records]
        if not records or (kinds[0], kinds[-1]) != ("start", "end") or len({*kinds[1:-1]} - {"metrics"}) > 0:
            return None
        chunk, (end, offset) = Chunk([record for record, _ in records]), records[-1]
        assert chunk.start is not None
        if (
            offset != folder.journal.stat().st_size
            or offset > may_send(folder)
            or {folder.curves.name, MODEL} & {*artifact_names(folder, end)}
        ):
            return None
        if any(damage_of(artifact) for artifact, _ in artifact_files(folder, end)):
            return None
        if chunk.start.get("is_restarted"):  # the run of the attempt before has to be closed
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
        """Return whether all of the journal was sent, by this process or another one.

        The answer comes from `mlflow.json`. The store itself is asked only if it has lost a run before. Then this may
        raise DeletedInStore.
        """
        sent = SyncCursor(folder, self._store)
        if sent.run_id is None or sent.offset != folder.journal.stat().st_size:
            return False
        return self.n_lost == 0 or self._runs.has(sent.run_id, journal.uid(folder.journal) or "")

    def abandon(self, folder: RunFolder) -> None:
        """Mark the run of a trial whose process died as KILLED. Once it is resumed, it is RUNNING again.

        Raises DamagedJournal if the trial did end, so that its journal must have lost the `end`.
        """
        run_id = self._runs.cursor(folder).run_id
        if run_id is not None and not folder.is_running() and journal.status(folder.journal) is None:
            last = journal.last(folder.journal)  # the same time on each call
            self._client.set_terminated(run_id, "KILLED", None if last is None else last["time"])
            require_not_ended(folder)

    def _forget(self) -> None:
        """Clear everything that this process has cached about the store."""
        self._runs.forget()
        self._artifacts.forget()

    def _send(self, folder: RunFolder, sent: SyncCursor, chunk: Chunk, created: bool) -> list[Damaged]:
        """Send one chunk in as few calls as MLflow's limits allow, since each call costs 4 to 10 ms whatever its size.

        Returns:
            An error for each artifact that is damaged and was therefore not sent.
        """
        run_id, is_first = sent.run_id, sent.offset == 0
        assert run_id is not None
        params = self._params(folder, run_id, chunk, is_first)
        for batch in batches(
            [Metric(*point) for point in chunk.points],
            [Param(key, value) for key, value in params.items()],
            [] if created else [RunTag(key, value) for key, value in chunk.tags.items()],
        ):
            self._client.log_batch(run_id, batch["metrics"], batch["params"], batch["tags"])
        if is_first and chunk.start is not None and chunk.start.get("dataset"):
            self._log_dataset(run_id, _dataset_input(chunk.start["dataset"]))
        damage: list[Damaged] = []
        if chunk.end is not None:
            damage = self._artifacts.send(folder, run_id, chunk.end)
            if not damage and MODEL in artifact_names(folder, chunk.end):
                from sweep.tracking.mlflow_models import send_model  # 0.06 s, which only runs need

                send_model(self._client, self._artifacts, folder, run_id, chunk.tags.get(REGISTER_TAG))
            self._client.set_terminated(run_id, chunk.end["status"], chunk.end["time"])
        elif chunk.start is not None and not created:
            self._client.update_run(run_id, status="RUNNING")  # also after KILLED, if the run is resumed
        return damage

    def _params(self, folder: RunFolder, run_id: str, chunk: Chunk, is_first: bool) -> Mapping[str, str]:
        """Return the params to send with a chunk. MLflow's params cannot change, and those of a resumed trial do not.

        If the training function logs to the run by itself, its own params come first: MLflow would refuse them if ours
        were there with other spellings. So ours are sent once the trial has ended, without those that are there.
        """
        start = chunk.start
        if start is None and chunk.end is not None:
            start = next(journal.records(folder.journal, "start", damage=[]), None)
        if start is None or not start.get("is_shared"):
            return chunk.params if is_first else {}
        if chunk.end is None or chunk.end["status"] == "KILLED":  # it may be resumed
            return {}
        known = self._client.get_run(run_id).data.params
        return {key: value for key, value in Chunk([start]).params.items() if key not in known}

    def _log_dataset(self, run_id: str, dataset: DatasetInput) -> None:
        """Attach the data set to the run. MLflow fails if another process adds the same data set in that instant."""
        try:
            self._client.log_inputs(run_id, [dataset])
        except MlflowException as error:
            if not isinstance(error.__cause__, sqlalchemy.exc.IntegrityError):
                raise
            self._client.log_inputs(run_id, [dataset])  # which is there now


class _Complete(NamedTuple):
    """A run that can be written to the tables at once.

    Attributes:
        folder: the run's folder.
        sent: the upload state.
        offset: the byte after its `end`.
        end: its `end` record.
        uid: its uid.
        parent: the MLflow run id of its study; None for a run outside a study.
        location: where the experiment's artifacts are.
        run: the rows to write.
    """

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
    """Raise DamagedJournal if the journal is shorter than the part of it that was sent to a store."""
    if journal.complete_size(folder.journal) < (n_bytes := most_sent(folder)):
        raise DamagedJournal(folder.journal, None, f"it is shorter than the {n_bytes} bytes that were sent to MLflow")


def _dataset_input(dataset: dict[str, Any]) -> DatasetInput:
    source, profile = json.dumps(dataset["source"]), json.dumps(dataset["profile"])
    entity = Dataset(dataset["name"], dataset["digest"], "local", source, profile=profile)
    return DatasetInput(entity, [InputTag("mlflow.data.context", "training")])


def _entered(stack: ExitStack, folder: RunFolder) -> bool:
    """Try to acquire the upload lock, which the stack then holds. Return False if another process holds it."""
    try:
        stack.enter_context(folder.upload_lock())
    except Busy:
        return False
    return True
