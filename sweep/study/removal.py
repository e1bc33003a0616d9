"""Remove a study: its files, its trials in the storage, and its runs in MLflow. Only what the study made is removed."""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import optuna

from sweep.execution.attempts import trials_of
from sweep.execution.steering import who_trains
from sweep.figures.page import is_page
from sweep.figures.plots import PLOTS
from sweep.storage.lock import StudyLock
from sweep.storage.optuna_internals import storage_of
from sweep.storage.url import one_line_errors
from sweep.study.reading import NoStudy, open_study, read_study, trusted_storage
from sweep.tracking import journal
from sweep.tracking.folders import Busy, RunFolder, StudyFolder
from sweep.tracking.run_copies import KEY, RunCopies, absolute_place
from sweep.tracking.store import Store, recorded_store
from sweep.utils.errors import ConfigError, Damaged

_LOCKS = {".lock", ".mirror.lock", ".study.lock", ".node.lock", ".copy", ".copied"}
_WORKER = re.compile(
    r"[0-9a-f]{8}(-\d+(\.\d+)?)?(\.lock|\.stop|\.command)?|trial-\d+\.stop"
)  # in the folder of the workers
_TRIAL = re.compile(r"\d+(\.(failed|lost)-\d+)?")
_SEED = re.compile(r"seed-\d+")


@dataclass(frozen=True)
class Removal:
    """What the removal of a study would do.

    Attributes:
        folder: the study's folder.
        storage: its storage; None for the file in its folder.
        store: its tracking store; None if its runs stay, or if it has none.
        files: the files that the study wrote.
        kept: other files in its folder, which stay.
        runs: the folders of its runs.
        copies: the copies of its runs; None if they stay, or if it has none.
    """

    folder: StudyFolder
    storage: str | None
    store: Store | None
    files: list[Path]
    kept: list[Path]
    runs: list[RunFolder]
    copies: RunCopies | None = None

    @property
    def n_bytes(self) -> int:
        """The size of the files that are removed."""
        return sum(path.stat().st_size for path in self.files if path.exists())

    def remove(self, note: Callable[[str], object] = lambda line: None) -> None:
        """Remove the study. If this is interrupted, it can be repeated: the study's journal goes last.

        Args:
            note: called with a line for each run in MLflow that stays, with the reason, and for copies that stay.

        Raises:
            ConfigError: the study runs, or its storage or MLflow cannot be reached. Nothing more is removed then.
        """
        with StudyLock(self.storage, self.folder):  # a command that begins waits, and then finds no study
            refuse_running(self.folder, self.storage)
            try:
                with self.folder.run.upload_lock():
                    self._remove_runs(note)
                    self._remove_copies(note)
                    self._remove_from_storage()
                    self._remove_files()
            except Busy:
                raise ConfigError("study", "its runs are being sent to MLflow; try again in a moment") from None

    def _remove_runs(self, note: Callable[[str], object]) -> None:
        if self.store is None:
            return
        from sweep.tracking.mlflow_removal import delete_runs

        for line in delete_runs(self.store, self.runs):
            note(line)

    def _remove_copies(self, note: Callable[[str], object]) -> None:
        if self.copies is not None:
            if not self.copies.remove():
                note(f"there are no copies of its runs in {self.copies.place}")
        elif any(run.copied.exists() or run.copy_mark.exists() for run in self.runs):
            note(f"copies of its runs stay; to remove them too, name their place as {KEY} did: --artifacts URL")

    def _remove_from_storage(self) -> None:
        """Delete the study from its storage. A file that has no other study goes with the study's files."""
        try:
            study = open_study(self.folder, self.storage)[0]
        except NoStudy:  # an earlier removal was interrupted, or the storage was removed by hand
            return
        except Damaged:
            if self.storage is not None:
                raise
            return
        with one_line_errors(self.storage):
            storage = storage_of(study)
            if self.storage is None and len(storage.get_all_studies()) == 1:
                return
            optuna.delete_study(study_name=study.study_name, storage=storage)
        self.files[:] = [path for path in self.files if path != self.folder.storage]

    def _remove_files(self) -> None:
        last = [self.folder.run.config, self.folder.storage, self.folder.run.journal]
        locks = [self.folder.path / name for name in _LOCKS]  # some were made just now
        for path in [*(file for file in self.files if file not in last), *last[:1], *locks, *last[1:]]:
            if path in self.files or path in locks:
                path.unlink(missing_ok=True)
        folders = sorted((path for path in self.folder.path.rglob("*") if path.is_dir()), reverse=True)
        for folder in [*folders, self.folder.path]:
            with suppress(OSError):  # something else is in it
                folder.rmdir()


def removal_of(
    folder: StudyFolder, storage: str | None, keeps_runs: bool = False, artifacts: str | None = None
) -> Removal:
    """Return what the removal of a study would do. Nothing is changed.

    Args:
        folder: the study's folder.
        storage: the storage that the user names; None uses the recorded one.
        keeps_runs: True leaves its runs in MLflow alone.
        artifacts: where the user says that copies of its runs are; None leaves them. No recorded place is trusted.

    Raises:
        ConfigError: the study runs, its storage or its tracking store is recorded but not trusted, or its storage
            cannot be read.
    """
    url = trusted_storage(folder, storage)
    refuse_running(folder, storage)
    store = None if keeps_runs else _store_of(folder)
    files, kept = [], []
    for path in sorted(path for path in folder.path.rglob("*") if not path.is_dir()):
        (files if _is_made(path, folder) else kept).append(path)
    begun = [RunFolder(path.parent) for path in files if path.name == folder.run.journal.name]
    start = None if artifacts is None else journal.first(folder.run.journal, "start")
    copies = None if start is None else RunCopies(absolute_place(str(artifacts)), folder.path.name, start["uid"])
    return Removal(folder, url, store, files, kept, begun, copies)


def refuse_running(folder: StudyFolder, storage: str | None) -> None:
    """Raise ConfigError if a command or a worker of the study lives, on this machine or another."""
    stop = f"stop it first: python -m sweep.studies stop {folder.path.name}"
    if folder.run.is_running() or folder.live_workers():
        raise ConfigError("study", f"'{folder.path.name}' is running; {stop}")
    try:
        study = read_study(folder, storage)
    except (NoStudy, Damaged):  # what is lost is not running
        return
    if owner := who_trains(study, trials_of(study), folder):
        raise ConfigError("study", f"'{folder.path.name}' is running: {owner} trains a trial; {stop}")


def _store_of(folder: StudyFolder) -> Store | None:
    try:
        return recorded_store(folder.run)
    except Damaged:
        raise
    except ConfigError as error:
        raise ConfigError(error.key, f"{error.problem}; or keep its runs in MLflow with --keep-runs") from error


def _is_made(path: Path, folder: StudyFolder) -> bool:
    """Return whether the study, its workers or its launcher write a file of that name at that place."""
    parts = path.relative_to(folder.path).parts
    match parts:
        case ("workers", name, *_):
            return _WORKER.fullmatch(name) is not None
        case (".submitit", *_):
            return True
        case ("trials", trial, *inner) if _TRIAL.fullmatch(trial):
            inner = inner[1:] if len(inner) > 1 and _SEED.fullmatch(inner[0]) else inner
            return _is_of_run(inner, RunFolder("."))
        case ("plots", name):
            return name in PLOTS
        case ("report.html",):
            return is_page(path)
        case _:
            own = path.with_name(path.name.removesuffix(".tmp"))
            return own in (folder.storage, *folder.written) or (path.parent == folder.path and path.name in _LOCKS)


def _is_of_run(parts: Sequence[str], run: RunFolder) -> bool:
    names = {path.name for path in run.written}
    if len(parts) == 1:
        return parts[0].removesuffix(".tmp") in names | _LOCKS
    return parts[0] == run.artifacts.name
