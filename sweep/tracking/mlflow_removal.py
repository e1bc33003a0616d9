"""Deletes the runs of a study in an MLflow store, and the files that were sent with them."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path

from sweep.tracking import journal
from sweep.tracking.chunks import MODEL, artifact_names, run_id_of
from sweep.tracking.folders import RunFolder
from sweep.tracking.mlflow_artifacts import is_local
from sweep.tracking.mlflow_client import FAILURES
from sweep.tracking.mlflow_runs import UID_TAG
from sweep.tracking.store import Store
from sweep.utils.errors import ConfigError, one_line
from sweep.utils.passwords import without_password
from sweep.utils.paths import is_inside

_GONE = "RESOURCE_DOES_NOT_EXIST"


def delete_runs(store: Store, folders: Sequence[RunFolder]) -> Iterator[str]:
    """Delete runs in a store. They are in MLflow's trash then, as after a click on Delete.

    A run counts as ours if its tag names the journal in the folder. If the store keeps its artifacts in the outputs,
    the files that were sent with a run are removed too. A run whose model is registered stays.

    Args:
        store: the tracking store.
        folders: the folders of the runs.

    Yields:
        A line for each run that stays.

    Raises:
        ConfigError: the store cannot be reached. Runs before that are deleted, and the call can be repeated.
    """
    assert store.uri is not None
    try:
        client = MlflowClient(store.uri)
        client.search_experiments(max_results=1)
        for folder in folders:
            run = _own_run(client, folder, store.uri)
            if run is None:
                continue
            sent = _sent_artifacts(folder)
            if MODEL in sent and (names := _registered(client, run.info.run_id)):
                yield f"run {run.info.run_name} stays in MLflow: its model is registered as {', '.join(names)}"
                continue
            if run.info.lifecycle_stage != LifecycleStage.DELETED:
                client.delete_run(run.info.run_id)
            _remove_artifacts(store, run, sent)
    except FAILURES as error:
        problem = f"{without_password(store.uri)} cannot be reached ({one_line(error)})"
        raise ConfigError("tracking.uri", f"{problem}; keep its runs in MLflow with --keep-runs") from error


def _own_run(client: MlflowClient, folder: RunFolder, uri: str) -> Run | None:
    """Return the run of a folder in the store; None if there is none, or its tag names another journal."""
    run_id = run_id_of(folder, uri)
    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != _GONE:
            raise
        return None
    return run if run.data.tags.get(UID_TAG) == journal.uid(folder.journal) else None


def _sent_artifacts(folder: RunFolder) -> list[str]:
    """Return the names of all artifacts that the run's record lists."""
    ends = journal.records(folder.journal, "end", damage=[])
    return list(dict.fromkeys(name for end in ends for name in artifact_names(folder, end)))


def _registered(client: MlflowClient, run_id: str) -> list[str]:
    return [f"{one.name} version {one.version}" for one in client.search_model_versions(f"run_id = '{run_id}'")]


def _remove_artifacts(store: Store, run: Run, names: Sequence[str]) -> None:
    """Remove the files that were sent with a run, if the store keeps them in the outputs where it should."""
    uri = str(run.info.artifact_uri)
    if store.artifact_root is None or not is_local(uri):
        return
    folder = Path(local_file_uri_to_path(uri))
    is_own = folder.parts[-2:] == (run.info.run_id, "artifacts") and folder.parents[2] == store.artifact_root
    if not is_own or not is_inside(folder, store.artifact_root):  # the store may be somebody else's
        return
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for empty in (folder, folder.parent, folder.parent.parent):
        with suppress(OSError):  # something else is in it
            empty.rmdir()
