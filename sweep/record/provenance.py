"""Where a run comes from: what it would take to run it again."""

import functools
import getpass
import importlib.metadata
import json
import os
import platform
import re
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from sweep.config import Config
from sweep.record.git import git
from sweep.record.store import without_password

_PACKAGES = ("sweep", "torch", "hydra-core", "omegaconf", "optuna", "mlflow", "numpy")


@functools.cache  # what this process has loaded does not change
def _setting() -> dict[str, str]:
    tags = {
        "cwd": os.getcwd(),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "os": platform.platform(),
        "cpus": str(os.cpu_count()),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
    }
    for package in _PACKAGES:
        tags[f"version.{package}"] = _version(package)
    commit = git("rev-parse", "HEAD")
    if commit:
        tags["git.commit"] = tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = str(bool(git("status", "--porcelain", "--ignore-submodules=dirty"))).lower()
    return tags


def provenance_tags(overrides: Sequence[str] | None) -> dict[str, str]:
    """Git state of the working directory, versions, machine, user, and the command that reruns this if it is known."""
    command = "" if overrides is None else without_password(rerun_command(overrides))
    return {**_setting(), "command": command, "mlflow.source.name": command or "sweep.run_trial"}


def uncommitted_diff() -> str:
    """What differs from the last commit in the working directory's repository; empty without one."""
    diff = git("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty")
    return diff + "\n" if diff else ""


def rerun_command(overrides: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "sweep.run", *overrides])


def resume_command(folder: Path) -> str:
    """The command that continues the run in `folder`, quoted for Hydra and for the shell."""
    return rerun_command([f"resume={_quoted(folder)}"])


def again_command(study: str, output_dir: Path) -> str:
    """The command that trains the best of a study again; `output_dir`, where the study is, is told if it need be."""
    usual = output_dir == Path(Config.output_dir).absolute()
    return rerun_command([f"from_study={study}", *([] if usual else [f"output_dir={_quoted(output_dir)}"])])


def report_command(study: str, output_dir: Path) -> str:
    """The command that makes a page of a study; `output_dir`, where the study is, is told if it need be."""
    usual = output_dir == Path(Config.output_dir).absolute()
    return shlex.join(["python", "-m", "sweep.report", study, *([] if usual else ["--output-dir", str(output_dir)])])


def _quoted(folder: Path) -> str:
    plain = re.fullmatch(r"[\w./:@-]+", str(folder))
    return str(folder) if plain else json.dumps(str(folder), ensure_ascii=False)


def _version(package: str) -> str:
    if package == "torch" and "torch" in sys.modules:
        return str(sys.modules["torch"].__version__)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        return "unknown"
