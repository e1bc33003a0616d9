"""The names of output folders, and checks that an earlier run or study is there."""

import re
from pathlib import Path

from sweep.utils.errors import ConfigError, Damaged

_LONGEST_FOLDER = 200
# What to do if a run has lost files that it needs.
ANEW = "start a new run; in a study, remove the trial's folder and run the study's command again"
BEST = "best.yaml"  # in the folder of a study: its best configuration


def folder_name(name: str) -> str:
    """Turn `name` into the name of a single folder, of at most 200 characters: an option may contain a /."""
    return re.sub(r"[^\w.+@,=-]+", "-", name).lstrip(".")[:_LONGEST_FOLDER]


def require_run(folder: Path) -> None:
    """Check that `folder` holds an earlier run that can be resumed.

    Raises:
        ConfigError: there is no run in the folder.
        Damaged: there is a run, but its config.yaml is gone.
    """
    config, journal = folder / "config.yaml", folder / "journal.jsonl"
    if not config.is_file():
        if journal.is_file() and journal.stat().st_size > 0:
            raise Damaged("resume", config, "it is gone", ANEW)
        raise ConfigError("resume", f"no run in '{folder}'; give the folder that the run printed")


def require_study(output_dir: Path, name: str) -> None:
    """Raise ConfigError unless the study `name` below `output_dir` has a best configuration."""
    _require_study("from_study", output_dir, name, BEST, "no trial is complete yet")


def require_begun_study(output_dir: Path, name: str) -> None:
    """Raise ConfigError unless there is a study `name` below `output_dir`, finished or not."""
    _require_study("study", output_dir, name, "journal.jsonl", "it has not begun")


def _require_study(key: str, output_dir: Path, name: str, file: str, reason: str) -> None:
    """Raise ConfigError, about `key`, unless the study's folder has `file`. `reason` says why it may be missing."""
    studies = output_dir.absolute() / "studies"
    known = sorted(path.parent.name for path in studies.glob(f"*/{file}"))
    if name not in known:
        is_there = name not in ("", ".", "..") and (studies / name).is_dir()
        problem = f"is not below '{studies}'"
        if is_there:
            message = f"{reason}, or the file was removed, and the study's command writes it anew"
            problem = f"has no '{studies / name / file}': {message}"
        choices = f"choose one of: {', '.join(known)}" if known else "there are no studies yet"
        raise ConfigError(key, f"'{name}' {problem}; {choices}")
