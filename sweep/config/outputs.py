"""Names of output folders, and what earlier commands left below them."""

import re
from pathlib import Path

from sweep.utils.errors import ConfigError, Damaged

_LONGEST_FOLDER = 200
ANEW = "start a new run; in a study, remove the trial's folder and run the study's command again"  # without its files
BEST = "best.yaml"  # in the folder of a study: its best configuration


def folder_name(name: str) -> str:
    """Return `name` as the name of one folder: options may hold a / or be of any length."""
    return re.sub(r"[^\w.+@,=-]+", "-", name).lstrip(".")[:_LONGEST_FOLDER]


def require_run(folder: Path) -> None:
    """Raises ConfigError unless there is an earlier run to resume in `folder`; Damaged if it has lost its config."""
    config, journal = folder / "config.yaml", folder / "journal.jsonl"
    if not config.is_file():
        if journal.is_file() and journal.stat().st_size > 0:
            raise Damaged("resume", config, "it is gone", ANEW)
        raise ConfigError("resume", f"no run in '{folder}'; give the folder that the run printed")


def require_study(output_dir: Path, name: str) -> None:
    """Raises ConfigError unless the study `name` below `output_dir` has a best configuration."""
    _require_study("from_study", output_dir, name, BEST, "no trial is complete yet")


def require_begun_study(output_dir: Path, name: str) -> None:
    """Raises ConfigError unless there is a study `name` below `output_dir`, finished or not."""
    _require_study("study", output_dir, name, "journal.jsonl", "it has not begun")


def _require_study(key: str, output_dir: Path, name: str, file: str, reason: str) -> None:
    studies = output_dir.absolute() / "studies"
    known = sorted(path.parent.name for path in studies.glob(f"*/{file}"))
    if name not in known:
        is_there = name not in ("", ".", "..") and (studies / name).is_dir()
        problem = f"is not below '{studies}'"
        if is_there:
            message = f"{reason}, or the file was removed, and the study's command writes it anew"
            problem = f"has no '{studies / name / file}': {message}"
        raise ConfigError(key, f"'{name}' {problem}; choose of: {', '.join(known) or 'none yet'}")
