"""Folders and trials of the studies that a test's commands have run."""

from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from sweep.tracking import journal
from sweep.tracking.folders import StudyFolder


def folder_of(cwd: Path, name: str = "s") -> StudyFolder:
    return StudyFolder(cwd / "outputs" / "studies" / name)


def only_study(cwd: Path) -> StudyFolder:
    (path,) = (cwd / "outputs" / "studies").iterdir()
    return StudyFolder(path)


def trials_of(cwd: Path) -> list[FrozenTrial]:
    """The trials of the study s, as Optuna itself reads its file."""
    storage = JournalStorage(JournalFileBackend(str(folder_of(cwd).storage)))
    return optuna.load_study(study_name="s", storage=storage).get_trials()


def epochs_of(cwd: Path, number: int) -> int:
    """How many epochs a trial of the study s has recorded."""
    curve = journal.curves(folder_of(cwd).trial(number).journal).get("val/loss")
    return 0 if curve is None else len(curve.steps)
