"""Run studies as complete commands, and read their storage and their trials' journals afterwards."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

MULTIRUN = [sys.executable, "-m", "sweep.run", "--multirun"]


class Attempt(NamedTuple):
    """A trial's training, read from its journal. start, end: seconds since 1970. train_s: None if it was pruned."""

    start: float
    end: float
    train_s: float | None


def quietly(command: Sequence[str], cwd: str | Path) -> None:
    """Run a command. If it fails, exit with its output."""
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}")


def run_study(name: str, overrides: Sequence[str], cwd: str | Path, storage: str | None = None) -> list[FrozenTrial]:
    """Run a complete study and return its trials by number.

    Args:
        storage: a database to use instead of the embedded storage; the study is deleted from it afterwards.
    """
    if storage is None:
        quietly([*MULTIRUN, f"hydra.sweeper.study_name={name}", *overrides], cwd)
        journal = JournalFileBackend(str(study_folder(name, cwd) / "optuna.log"))
        return optuna.load_study(study_name=name, storage=JournalStorage(journal)).trials
    quietly([*MULTIRUN, f"hydra.sweeper.study_name={name}", f"hydra.sweeper.storage={storage}", *overrides], cwd)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    optuna.delete_study(study_name=name, storage=storage)
    return trials


def study_folder(name: str, cwd: str | Path) -> Path:
    return Path(cwd) / "outputs" / "studies" / name


def attempts(folder: Path) -> list[Attempt]:
    """Return the attempts of all trials below the folder that have ended, in the order of their starts."""
    return sorted(_attempt(journal) for journal in folder.rglob("journal.jsonl") if journal.parent != folder)


def _attempt(journal: Path) -> Attempt:
    """Read the attempt of a trial that began once."""
    records = {record["kind"]: record for record in _records(journal)}
    train_s = records["end"]["values"].get("time/train_s", [None])[0]
    return Attempt(records["start"]["time"] / 1e3, records["end"]["time"] / 1e3, train_s)


def _records(journal: Path) -> Iterator[dict[str, Any]]:
    with open(journal, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
