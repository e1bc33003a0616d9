"""Studies run as whole commands, and what their storage and their trials' journals tell of them afterwards."""

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
    """A trial's training, as its journal has it. start, end: seconds since 1970. train_s: None if it was pruned."""

    start: float
    end: float
    train_s: float | None


def quietly(command: Sequence[str], cwd: str | Path) -> None:
    """Runs a command; what it says is shown only if it fails."""
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}")


def run_study(name: str, overrides: Sequence[str], cwd: str | Path, storage: str | None = None) -> list[FrozenTrial]:
    """Runs a study whole and returns its trials by number. It leaves the storage, by default the embedded one."""
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
    """Of every trial below the folder that ended, in the order of starts."""
    return sorted(_attempt(journal) for journal in folder.rglob("journal.jsonl") if journal.parent != folder)


def _attempt(journal: Path) -> Attempt:
    """Of a trial that began once."""
    records = {record["kind"]: record for record in _records(journal)}
    train_s = records["end"]["values"].get("time/train_s", [None])[0]
    return Attempt(records["start"]["time"] / 1e3, records["end"]["time"] / 1e3, train_s)


def _records(journal: Path) -> Iterator[dict[str, Any]]:
    with open(journal, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
