"""Send MLflow what it lacks of the runs below a folder. No row is sent twice."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.tracking import journal
from sweep.tracking.chunks import may_send
from sweep.tracking.folders import Busy, RunFolder, StudyFolder
from sweep.tracking.store import Store, output_dir_around, output_dir_of, recorded_store, recorded_tracking
from sweep.utils.checked_file import is_checked
from sweep.utils.errors import ConfigError, Damaged, DamagedJournal, DeletedInStore, one_line
from sweep.utils.passwords import without_password
from sweep.utils.paths import absolute, is_inside, refuse_links_at, refuse_links_in
from sweep.utils.terminal import complain

if TYPE_CHECKING:
    from sweep.tracking.mlflow_client import Uploader


@dataclass(frozen=True)
class SyncResult:
    """What a store has of the runs below a folder.

    Attributes:
        folder: the folder.
        n_tracked: the number of its runs that are tracked.
        n_sent: how many of them their store has completely.
        n_refused: how many name a place that cannot be trusted.
    """

    folder: Path
    n_tracked: int
    n_sent: int
    n_refused: int


def sync_outputs(output_dir: str | Path = "outputs", *, uri: str | None = None) -> SyncResult:
    """Send MLflow what it lacks of the runs below a folder, like `python -m sweep.sync`.

    What cannot be sent is said on standard error, each problem once.

    Args:
        output_dir: where to look.
        uri: an MLflow store for all runs, instead of the one that each names.

    Raises:
        ConfigError: there is no such folder.
    """
    folder = absolute(output_dir)
    if not os.path.isdir(folder):  # Path.is_dir raises OSError for a name that is too long
        raise ConfigError("output_dir", f"no folder '{folder}'")
    tracked: list[tuple[RunFolder, Store]] = []
    refused: list[ConfigError] = []
    shown: set[str] = set()  # one line is enough for a study's journal, or an experiment, that several runs need
    for run in sorted(_begun(folder), key=lambda run: run.path):
        try:
            _check_begun(run)
            _refuse_places(run, folder)
            if (store := recorded_store(run, uri)) is not None:
                tracked.append((run, store))
        except ConfigError as error:
            refused.append(error)
            shown.add(str(error))
            complain(f"error: {error}")
        except OSError as error:
            refused.append(Damaged("output_dir", run.path, one_line(error), "put back a copy of it"))
            complain(f"error: {refused[-1]}")
    return SyncResult(
        folder=folder,
        n_tracked=len(tracked) + len(refused),
        n_sent=sum(_sync_all(tracked, shown)),
        n_refused=sum(not isinstance(error, Damaged) for error in refused),
    )


def _begun(output_dir: Path) -> Iterator[RunFolder]:
    """Yield every run below the folder that has a record, or has lost it."""
    for name, folders, files in os.walk(output_dir):
        run = RunFolder(name)
        if run.journal.name in (*folders, *files) or _has_lost_its_record(run, files):
            yield run


def _has_lost_its_record(run: RunFolder, files: Sequence[str]) -> bool:
    """Return True if the folder has other files of a tracked run or study, so that its journal must be lost.

    A config.yaml alone does not count: MLflow's artifacts have copies of it.
    """
    if run.sync_state.name in files:
        return True
    if run.config.name not in files or run.path.name == "artifacts":
        return False
    study = StudyFolder(run.path)
    others = {path.name for path in (*run.written, study.results, study.storage)} - {run.config.name}
    return not others.isdisjoint(files) and is_checked(run.config) and recorded_tracking(run).mlflow


def _check_begun(run: RunFolder) -> None:
    """Raise DamagedJournal for a journal that is gone, or does not begin with a start event.

    An empty journal is accepted if the run has no other files: its process died early.
    """
    if not os.path.lexists(run.journal):
        raise DamagedJournal(run.journal, None, "it is gone, but the run has begun")
    damage: list[DamagedJournal] = []
    for record, _ in journal.read(run.journal, damage=damage):
        if record["kind"] != "start":
            raise damage[0] if damage else DamagedJournal(run.journal, 1, "the record does not begin with its start")
        break
    if journal.complete_size(run.journal) == 0 and any(
        path.exists() for path in (run.sync_state, run.checkpoint, run.best, StudyFolder(run.path).results)
    ):
        raise DamagedJournal(run.journal, None, "it is empty, but the run has other files")


def _refuse_places(run: RunFolder, output_dir: Path) -> None:
    """Raise ConfigError for a run that would make us read or write outside its own `output_dir` and the given one."""
    recorded = output_dir_of(run)
    if recorded is None:
        return
    if not recorded.is_relative_to(output_dir) and recorded != output_dir_around(run.path):
        raise ConfigError(
            "output_dir",
            f"'{run.path}' records '{recorded}' as its output_dir; if you trust it, give that folder instead",
        )
    if not is_inside(run.path, output_dir):
        raise ConfigError("output_dir", f"'{run.path}' lies elsewhere by a link, and links are not followed")
    refuse_links_at(recorded)
    refuse_links_in(run.path, "output_dir")


def _sync_all(tracked: Sequence[tuple[RunFolder, Store]], shown: set[str]) -> Iterator[bool]:
    """Send each run, and yield True if its store then has the complete run. Problems are printed, each once.

    If a store does not answer, its other runs are skipped.

    Args:
        tracked: the runs, each with its store.
        shown: errors that were printed. More are added.
    """
    if not tracked:
        return
    from sweep.tracking.mlflow_client import FAILURES, Uploader

    uploaders: dict[Store, Uploader] = {}
    down: set[Store] = set()
    for run, store in tracked:
        if store in down:
            yield False
            continue
        try:
            if store not in uploaders:
                uploaders[store] = Uploader(store)
            uploaders[store].push(run)
            uploaders[store].abandon(run)
            journal.check(run.journal)  # also the part that was sent before, so that damage to it is reported
            waits = may_send(run) < journal.complete_size(run.journal)
            if waits:
                complain(
                    f"{run.path}: what it recorded since its last copy is sent once the study's command resumes it"
                )
            yield not waits
        except Damaged as error:
            if str(error) not in shown:
                is_own = run.path in Path(str(error.path)).parents  # else its study's, without which it is not sent
                complain(f"error: {error}{'; what can be read of the run is sent' if is_own else ''}")
            shown.add(str(error))
            yield False
        except Busy:
            complain(f"{run.path}: another process is sending it")
            yield False
        except DeletedInStore as error:
            if str(error) not in shown:
                complain(f"{run.path}: {error}")
            shown.add(str(error))
            yield False
        except FAILURES as error:
            complain(f"{run.path}: {one_line(error)}")
            if not _answers(uploaders.get(store)):
                down.add(store)
                complain(f"{without_password(store.uri or '')} does not answer; its other runs wait")
            yield False


def _answers(uploader: "Uploader | None") -> bool:
    """Return True if the uploader's store can be reached."""
    from sweep.tracking.mlflow_client import FAILURES

    if uploader is None:
        return False
    try:
        uploader.reach()
    except FAILURES:
        return False
    return True
