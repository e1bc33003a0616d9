"""Finds, creates and checks the runs in one MLflow store. A run is found by its tag `sweep.uid`."""

import os
import time
from collections.abc import Iterator, Mapping
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
RESTARTED_TAG = "restarted"  # of a run whose machine was lost: the run in which the trial began anew
_PATIENCE_S, _GIVE_WAY_S = 10.0, 3.0


class StoredRuns:
    """The experiments and runs in a store, with a cache of what this process has seen there.

    Attributes:
        n_lost: how many runs were sent earlier and are no longer in the store.
        n_forgotten: how often the cache was cleared because the store had lost something in it.
    """

    def __init__(self, client: MlflowClient, store: str, places: ArtifactPlaces) -> None:
        """`store` is the key of the store in `mlflow.json`."""
        self._client, self._store, self._places = client, store, places
        self._experiments: dict[str, str] = {}
        self._known: dict[str, str] = {}  # the uid of each run that the store had when last asked, by run id
        self._parents: dict[str, str] = {}  # run ids of studies, by uid
        self._childless: set[str] = set()  # run ids of studies that had no child yet when first asked
        self.n_lost = 0
        self.n_forgotten = 0

    def cursor(self, folder: RunFolder) -> SyncCursor:
        """Return the upload state of a run. It is reset if the store has lost the run meanwhile."""
        sent = SyncCursor(folder, self._store)
        if sent.run_id is not None and not self.has(sent.run_id, journal.uid(folder.journal) or ""):
            sent.run_id, sent.offset, sent.attempted = None, 0, True
            self.n_lost += 1
        return sent

    def remember(self, run_id: str, uid: str) -> None:
        """Add a run that the store has now to the cache."""
        self._known[run_id] = uid

    def may_have_children(self, parent: str | None) -> bool:
        """Return whether the study may have had child runs in the store when this process first asked."""
        return parent not in self._childless

    def forget(self) -> None:
        """Clear the cache, so that the store is asked again."""
        for memory in (self._experiments, self._known, self._parents, self._childless):
            memory.clear()
        self.n_forgotten += 1

    def has(self, run_id: str, uid: str | None) -> bool:
        """Return whether the store still has the run. It may have been emptied, or replaced by an older copy.

        Args:
            run_id: the MLflow run id.
            uid: the uid that the run's tag must have; None for any. The folder may be somebody else's and name any
                run of the store, so a run that was made for another journal does not count.

        Raises:
            DeletedInStore: the run or its experiment is marked as deleted.
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
        """Raise DeletedInStore if the run, or its whole experiment, is marked as deleted."""
        if run.info.lifecycle_stage != LifecycleStage.DELETED:
            return
        experiment = self._client.get_experiment(run.info.experiment_id)
        if experiment.lifecycle_stage == LifecycleStage.DELETED:
            raise self._deleted("experiment", experiment.name, experiment.experiment_id)
        raise self._deleted("run", run.info.run_name or "", run.info.run_id)

    def _deleted(self, kind: str, name: str, identity: str) -> DeletedInStore:
        """Return the error with the command that restores it. `kind` is experiment or run, as in MLflow's commands."""
        shown = without_password(self._client.tracking_uri)
        restore = command("mlflow", f"{kind}s", "restore", f"--{kind}-id", identity)
        remedy = f"{kind} '{name}' was deleted in MLflow; bring it back"
        if shown != self._client.tracking_uri:
            remedy += ", with the password in place of ***,"
        remedy = " ".join(remedy.split())
        return DeletedInStore(f"{remedy} with:  {with_variable('MLFLOW_TRACKING_URI', shown, restore)}")

    def find_or_create(self, folder: RunFolder, sent: SyncCursor, chunk: Chunk) -> bool:
        """Find the MLflow run of a journal, or create it with the tags of `chunk`. Set `sent.run_id`.

        Args:
            folder: the run's folder.
            sent: the upload state, which has no run id yet.
            chunk: the first chunk of the journal.

        Returns:
            True if the run was created.

        Raises:
            DeletedInStore: the run or its experiment is marked as deleted.
            MlflowException: the study's run was deleted, or the store fails.
            DamagedJournal: the study's journal is damaged.
        """
        assert chunk.start is not None, "a journal begins with its start"
        experiment, uid = self.experiment(chunk.start["experiment"]), chunk.start["uid"]
        parent = self.parent(folder, chunk.start)
        if sent.attempted or self.may_have_children(parent) or folder.copied.exists():
            sent.run_id = self._find_own(experiment, uid)
        if created := sent.run_id is None:
            self._check_parent(parent)
            sent.attempted = True
            sent.save()  # a crash from here until the next save must not lead to a second run
            run_id = sent.run_id = self._create(chunk.start, chunk.tags | own_tags(uid, parent))
            if chunk.start["tags"].get("kind") == "study":
                sent.run_id = self._only(experiment, run_id, uid)
                created = sent.run_id == run_id
            if parent is not None and chunk.start.get("is_restarted"):
                self._close_earlier(experiment, parent, chunk.start["tags"], sent.run_id)
        assert sent.run_id is not None
        self._known[sent.run_id] = uid
        return created

    def parent(self, folder: RunFolder, start: journal.Record) -> str | None:
        """Return the MLflow run id of the study that a run belongs to, or None. Create a missing study's run."""
        parent = start.get("parent")
        if parent is None:
            return None
        if (uid := parent["uid"]) not in self._parents:
            study = RunFolder(_study_above(folder.path, parent["folder"]))
            own_start = journal.first(study.journal, "start")
            if own_start is not None and own_start["uid"] == uid:
                run_id = self.claim(study, own_start)
            else:  # the run's folder was moved out of its study
                run_id = self._find_own(self.experiment(start["experiment"]), uid)
                run_id = run_id or self._only(
                    self.experiment(start["experiment"]),
                    self._create(start | {"name": parent["name"]}, {UID_TAG: uid}),
                    uid,
                )
            if self._find(self.experiment(start["experiment"]), PARENT_TAG, run_id) is None:
                self._childless.add(run_id)
            self._parents[uid] = run_id
        return self._parents[uid]

    def claim(self, folder: RunFolder, start: journal.Record) -> str:
        """Return the id of the run that begins with `start`. If there is none, create one that `push` fills later."""
        with _in_turn(folder):
            sent = self.cursor(folder)
            if sent.run_id is None:
                self.find_or_create(folder, sent, Chunk([start]))
                sent.save()
            assert sent.run_id is not None
            return sent.run_id

    def _close_earlier(self, experiment: str, parent: str, tags: Mapping[str, str], run_id: str) -> None:
        """End the runs of a trial whose worker died without leaving a record that another machine could read.

        Args:
            experiment: the id of the experiment.
            parent: the run id of the study.
            tags: those of the trial's new run.
            run_id: the new run, which the others then name.
        """
        names = [name for name in ("trial", "replicate") if name in tags]
        is_same = [f"tags.`{PARENT_TAG}` = '{parent}'", *(f"tags.`{name}` = '{tags[name]}'" for name in names)]
        for run in self._client.search_runs([experiment], " and ".join(is_same)):
            if run.info.run_id == run_id or run.info.status not in ("RUNNING", "KILLED"):
                continue
            self._client.set_tag(run.info.run_id, RESTARTED_TAG, run_id)
            if run.info.status == "RUNNING":
                self._client.set_terminated(run.info.run_id, "KILLED")

    def _only(self, experiment: str, run_id: str, uid: str) -> str:
        """Return the run of a study that is kept, if upload processes of several machines create one at once.

        Args:
            experiment: the id of the experiment.
            run_id: the run that this process has just created. If another one is kept, it is deleted.
            uid: the uid of both.
        """

        def others() -> list[str]:
            found = self._client.search_runs([experiment], f"tags.`{UID_TAG}` = '{uid}'")
            return sorted(run.info.run_id for run in found if run.info.run_id != run_id)

        left = others()
        if left and run_id < left[0]:  # the other one is deleted, unless its process saw it alone
            time.sleep(_GIVE_WAY_S)
            left = others()
        if not left:
            return run_id
        self._client.delete_tag(run_id, UID_TAG)  # so that nobody finds it
        self._client.delete_run(run_id)
        return left[0]

    def _check_parent(self, parent: str | None) -> None:
        """Raise MlflowException if the study's run was deleted since it was found. MLflow does not check this."""
        if parent is not None and not self.has(parent, None):
            raise MlflowException(f"the study's run {parent} is gone", RESOURCE_DOES_NOT_EXIST)

    def _find_own(self, experiment: str, uid: str) -> str | None:
        """Return the id of the run with that uid, or None. Raise DeletedInStore if it is marked as deleted."""
        if (run := self._find(experiment, UID_TAG, uid)) is None:
            return None
        self._check_active(run)
        return run.info.run_id

    def _find(self, experiment: str, tag: str, value: str) -> Run | None:
        """Return a run with that tag, deleted or not; None if there is none."""
        found = self._client.search_runs([experiment], f"tags.`{tag}` = '{value}'", ViewType.ALL, max_results=1)
        return found[0] if found else None

    def _create(self, start: journal.Record, tags: dict[str, str]) -> str:
        experiment = self.experiment(start["experiment"])
        run = self._client.create_run(experiment, start_time=start["time"], tags=tags, run_name=start["name"])
        self._places.created(run.info.run_id, run.info.artifact_uri)
        return run.info.run_id

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, which is created if it is missing. Raise DeletedInStore if it is deleted."""
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
    """Return the folder of the study that contains a run; `folder` itself if the record names another one."""
    is_above = recorded in ("../..", "../../..")
    return Path(os.path.normpath(folder / recorded)) if is_above else folder


def own_tags(uid: str, parent: str | None) -> dict[str, str]:
    """Return the tags by which a run, and its study, are found again."""
    return {UID_TAG: uid} if parent is None else {UID_TAG: uid, PARENT_TAG: parent}


@contextmanager
def _in_turn(folder: RunFolder) -> Iterator[None]:
    """Hold the upload lock. Wait up to 10 s for it, since others hold it only for a moment; then raise Busy."""
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
