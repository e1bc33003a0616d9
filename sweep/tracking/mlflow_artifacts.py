"""Sends the artifacts of runs.

A store that lies in the outputs may be somebody else's, so it cannot direct artifacts to a place outside them.
"""

import hashlib
import logging
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import append_to_uri_path

from sweep.figures.drawing import drawing_problem
from sweep.tracking import journal
from sweep.tracking.chunks import artifact_files, artifact_names
from sweep.tracking.curves_plot import ensure_curves
from sweep.tracking.folders import RunFolder
from sweep.tracking.store import Store
from sweep.utils.checked_file import damage_of
from sweep.utils.errors import Damaged, DamagedJournal
from sweep.utils.paths import is_inside

_PATIENCE_S = 10.0


class ArtifactPlaces:
    """Sends the artifacts of runs to the location that the store names for them."""

    def __init__(self, client: MlflowClient, store: Store) -> None:
        assert store.uri is not None
        self._client = client
        self._artifact_root = store.artifact_root
        self._own_database = store.uri.removeprefix("sqlite:///") if store.is_in_outputs else None
        self._locations: dict[str, str] = {}  # by experiment
        self._proxied: dict[str, str] = {}  # artifact URIs of runs that this process has created, by run id

    def forget(self) -> None:
        """Clear what is cached."""
        self._locations.clear()
        self._proxied.clear()

    def created(self, run_id: str, artifact_uri: str | None) -> None:
        """Note where the artifacts of a new run go. If a server takes them, `send` need not ask for it again."""
        if artifact_uri is not None and artifact_uri.startswith("mlflow-artifacts:"):
            self._proxied[run_id] = artifact_uri

    def of_new_experiment(self, name: str) -> str | None:
        """Return the artifact location for a new experiment; None if the store chooses it."""
        return None if self._artifact_root is None else self._own_location(name)

    def location(self, experiment: str) -> str:
        """Return the URI of the folder for the artifacts of an experiment's runs."""
        if experiment not in self._locations:
            found = self._client.get_experiment(experiment)
            location = found.artifact_location
            if not self.may_hold(location):  # the outputs were moved, or are somebody else's
                location = self._own_location(found.name)
            self._locations[experiment] = location
        return self._locations[experiment]

    def _own_location(self, experiment_name: str) -> str:
        """Return the artifact location of an experiment in an embedded store."""
        assert self._artifact_root is not None
        return (self._artifact_root / hashlib.sha256(experiment_name.encode()).hexdigest()[:12]).as_uri()

    def store(self, folder: RunFolder, end: journal.Record, artifact_uri: str) -> None:
        """Copy a run's artifacts to the place where the client would send them.

        The run is not in the store yet, so nobody can see it half complete.
        """
        is_file = artifact_uri.startswith("file:///")
        repository = None
        for artifact, above in artifact_files(folder, end):
            self._check_place(artifact_uri, artifact, above)
            if is_file:  # MLflow's own copying takes 1 ms a file
                target = os.path.join(local_file_uri_to_path(artifact_uri), above or "")
                os.makedirs(target, exist_ok=True)
                shutil.copy2(artifact, target)
                continue
            repository = repository or get_artifact_repository(artifact_uri, self._client.tracking_uri)
            repository.log_artifact(str(artifact), above)

    def _check_place(self, artifact_uri: str, artifact: Path, above: str | None) -> None:
        """Raise MlflowException if a store in the outputs would put the artifact outside them, as by a link."""
        name = os.path.join(above or "", artifact.name)
        if not self.may_hold(artifact_uri, name):
            problem = f"the store would put {name} into {artifact_uri}, which is not below {self._artifact_root}"
            raise MlflowException(f"{problem}; send the runs to a store of your own: python -m sweep.sync --uri URI")

    def may_hold(self, uri: str, name: str = "") -> bool:
        """Return whether artifacts, or the one called `name`, may be sent to that URI.

        A store that lies in the outputs may only name places in them.
        """
        if self._own_database is None:
            return True
        assert self._artifact_root is not None
        return is_local(uri) and is_inside(Path(local_file_uri_to_path(uri), name), self._artifact_root)

    def send(self, folder: RunFolder, run_id: str, end: journal.Record) -> list[Damaged]:
        """Send the artifacts that the `end` record lists and that exist. Draw the curves first if they are among them.

        Args:
            folder: the run's folder.
            run_id: the MLflow run id.
            end: the `end` record.

        Returns:
            An error for each artifact that is damaged and was therefore not sent.

        Raises:
            MlflowException: the store fails, or would put an artifact outside the outputs.
        """
        if folder.curves.name in artifact_names(folder, end) and not _is_damaged(folder.journal):
            problem = drawing_problem(lambda: ensure_curves(folder))
            if problem is not None:
                logging.getLogger(__name__).warning("cannot draw %s: %s", folder.curves, problem)
        files = list(artifact_files(folder, end))
        if self._own_database is not None:
            info = self._client.get_run(run_id).info
            uri = str(info.artifact_uri)
            if not self.may_hold(uri):
                uri = artifact_uri_of(self.location(info.experiment_id), run_id)
                _set_artifact_uri(self._own_database, run_id, uri)
            for artifact, above in files:
                self._check_place(uri, artifact, above)
        damage = {artifact: problem for artifact, _ in files if (problem := damage_of(artifact)) is not None}
        proxied = self._proxied.pop(run_id, None)  # a run ends once, as a rule
        repository = None if proxied is None else get_artifact_repository(proxied, self._client.tracking_uri)
        for artifact, above in files:
            if artifact in damage:
                continue
            if repository is not None:
                repository.log_artifact(str(artifact), above)
            else:
                self._client.log_artifact(run_id, str(artifact), above)
        return list(damage.values())


def is_local(uri: str) -> bool:
    """Return whether an artifact URI names a folder of this machine."""
    return uri.startswith(("/", "file:///"))


def _is_damaged(path: Path) -> bool:
    """Return whether a line of the journal is damaged. The caller of `send` reports it."""
    try:
        journal.check(path)
    except DamagedJournal:
        return True
    return False


def artifact_uri_of(location: str, run_id: str) -> str:
    return append_to_uri_path(location, run_id, "artifacts")


def _set_artifact_uri(database: str, run_id: str, uri: str) -> None:
    """Set the artifact URI of a run in the database, which MLflow's client cannot change."""
    try:
        with closing(sqlite3.connect(database, timeout=_PATIENCE_S)) as connection, connection:
            connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (uri, run_id))
    except sqlite3.Error as error:
        raise MlflowException(str(error)) from error
