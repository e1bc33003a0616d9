"""The runs of one MLflow store: each found again by its tag `sweep.uid`, or made; and whether they are still there."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mlflow.entities import LifecycleStage, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.tracking import MlflowClient

from sweep.config.overrides import command, with_variable
from sweep.tracking import journal
from sweep.tracking.chunks import Chunk, SyncCursor
from sweep.tracking.folders import Busy, RunFolder
from sweep.tracking.mlflow_artifacts import ArtifactPlaces
from sweep.utils.errors import DeletedInStore
from sweep.utils.passwords import without_password

UID_TAG = "sweep.uid"
PARENT_TAG = "mlflow.parentRunId"
_PATIENCE_S = 10.0


class StoredRuns:
    """What a store has of experiments, studies and trials, and what this process remembers of it.

    store: names the store in `mlflow.json`. n_lost: runs that were sent once and are no longer in the store.
    n_forgotten: times that the store was found to have lost something that this remembers.
    """

    def __init__(self, client: MlflowClient, store: str, places: ArtifactPlaces) -> None:
        self._client, self._store, self._places = client, store, places
        self._experiments: dict[str, str] = {}
        self._known: dict[str, str] = {}  # runs that the store had when last asked, each with the uid of its record
        self._parents: dict[str, str] = {}  # run ids of studies, by uid
        self._childless: set[str] = set()  # studies whose first child was still to be sent
        self.n_lost = 0
        self.n_forgotten = 0

    def cursor(self, folder: RunFolder) -> SyncCursor:
        """Return how much of the trial the store has, which may have lost its run meanwhile."""
        sent = SyncCursor(folder, self._store)
        if sent.run_id is not None and not self.has(sent.run_id, journal.uid(folder.journal) or ""):
            sent.run_id, sent.offset, sent.attempted = None, 0, True
            self.n_lost += 1
        return sent

    def remember(self, run_id: str, uid: str) -> None:
        """Take note of a run that the store has now."""
        self._known[run_id] = uid

    def may_have_children(self, parent: str | None) -> bool:
        """Whether the store may have had trials of that study when this process first asked."""
        return parent not in self._childless

    def forget(self) -> None:
        """Have the store asked again about all that this process remembers of it."""
        for memory in (self._experiments, self._known, self._parents, self._childless):
            memory.clear()
        self.n_forgotten += 1

    def has(self, run_id: str, uid: str | None) -> bool:
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

    def find_or_create(self, folder: RunFolder, sent: SyncCursor, chunk: Chunk) -> bool:
        """Gives the trial its MLflow run; True when it had to be made, with the tags of the portion, its first."""
        assert chunk.start is not None, "a journal begins with its start"
        experiment, uid = self.experiment(chunk.start["experiment"]), chunk.start["uid"]
        parent = self.parent(folder, chunk.start)
        if sent.attempted or self.may_have_children(parent):
            sent.run_id = self._find_own(experiment, uid)
        if created := sent.run_id is None:
            self._check_parent(parent)
            sent.attempted = True
            sent.save()  # a crash from here until the next save must not lead to a second run
            sent.run_id = self._create(chunk.start, chunk.tags | own_tags(uid, parent))
        assert sent.run_id is not None
        self._known[sent.run_id] = uid
        return created

    def parent(self, folder: RunFolder, start: journal.Record) -> str | None:
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
                run_id = self._find_own(self.experiment(start["experiment"]), uid)
                run_id = run_id or self._create(start | {"name": parent["name"]}, {UID_TAG: uid})
            if self._find(self.experiment(start["experiment"]), PARENT_TAG, run_id) is None:
                self._childless.add(run_id)
            self._parents[uid] = run_id
        return self._parents[uid]

    def _claim(self, study: RunFolder, start: journal.Record) -> str:
        """The study's run; when there is none, one that its journal fills in later."""
        with _in_turn(study):
            sent = self.cursor(study)
            if sent.run_id is None:
                self.find_or_create(study, sent, Chunk([start]))
                sent.save()
            assert sent.run_id is not None
            return sent.run_id

    def _check_parent(self, parent: str | None) -> None:
        """Raises if the study's run was deleted since it was found: MLflow itself would take runs below it."""
        if parent is not None and not self.has(parent, None):
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
        experiment = self.experiment(start["experiment"])
        run = self._client.create_run(experiment, start_time=start["time"], tags=tags, run_name=start["name"])
        return run.info.run_id

    def experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                location = self._places.of_new_experiment(name)
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


def _study_above(folder: Path, recorded: str) -> Path:
    """The folder of the study that a trial lies in. A record that names a folder elsewhere is not followed."""
    is_above = recorded in ("../..", "../../..")
    return Path(os.path.normpath(folder / recorded)) if is_above else folder


def own_tags(uid: str, parent: str | None) -> dict[str, str]:
    return {UID_TAG: uid} if parent is None else {UID_TAG: uid, PARENT_TAG: parent}


@contextmanager
def _in_turn(folder: RunFolder) -> Iterator[None]:
    """Holds the mirror lock; waits for it, since it is held for a moment only. Raises Busy."""
    deadline = time.monotonic() + _PATIENCE_S
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(folder.upload_lock())
                break
            except Busy:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.02)
        yield
