"""Where a run comes from, and the commands that run it again."""

import functools
import getpass
import importlib.metadata
import os
import platform
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from sweep.config.overrides import command, program, sets, setting, with_variable
from sweep.config.schema import Config
from sweep.tracking.git import git
from sweep.tracking.store import Store

_OWN = "hydra-sweep"  # the distribution of the package `sweep`
_PACKAGES = ("sweep", "torch", "hydra-core", "omegaconf", "optuna", "mlflow", "numpy")


@functools.cache  # none of this changes within a process
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


def provenance_tags(overrides: Sequence[str] | None, script: str | None = None) -> dict[str, str]:
    """Return tags with the git state, versions, machine and user, and the command that runs this again.

    Args:
        overrides: those of the command; None if it is unknown.
        script: the file of another Hydra application; None for sweep's own.
    """
    rerun = "" if overrides is None else rerun_command(overrides, script)
    return {**_setting(), "command": rerun, "mlflow.source.name": rerun or "sweep.run_trial"}


def uncommitted_diff() -> str:
    """Return the diff between the working directory and its last commit; empty if there is no repository."""
    diff = git("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty")
    return diff + "\n" if diff else ""


def rerun_command(overrides: Sequence[str], script: str | None = None) -> str:
    return command("sweep.run", *overrides) if script is None else program("python", script, *overrides)


def resume_command(folder: Path, store: Store | None = None) -> str:
    """Return the command that resumes the run in `folder`, quoted for Hydra and the shell.

    If `store` is not the default store, the command sets MLFLOW_TRACKING_URI so that the run is sent there again.
    """
    return _with_store(rerun_command([setting("resume", str(folder))]), store)


def from_study_command(study: str, output_dir: Path, overrides: Sequence[str] = ()) -> str:
    """Return the command that trains a study's best trial again.

    Args:
        study: the study's name.
        output_dir: the folder that holds the study. The command names it unless it is the default.
        overrides: the overrides of the best trial. The command repeats those of `hydra.searchpath`, since folders of
            options must be given on the user's own command: the study's folder may come from somebody else.
    """
    usual = output_dir == Path(Config.output_dir).absolute()
    folders = [o for o in overrides if sets(o, "hydra.searchpath")]
    place = [] if usual else [setting("output_dir", str(output_dir))]
    return rerun_command([setting("from_study", study), *place, *folders])


def report_command(study: str, output_dir: Path, storage: str | None = None) -> str:
    """Return the command that makes the report of a study.

    Args:
        study: the study's name.
        output_dir: the folder that holds the study. The command names it unless it is the default.
        storage: the study's storage; None if it is a file below `output_dir`.
    """
    usual = output_dir == Path(Config.output_dir).absolute()
    options = [] if usual else ["--output-dir", output_dir]
    options += [] if storage is None else ["--storage", storage]
    return command("sweep.report", *options, *(["--"] if study.startswith("-") else []), study)


def sync_command(output_dir: Path, store: Store) -> str:
    """Return the command that uploads everything that MLflow lacks."""
    return _with_store(command("sweep.sync", output_dir), store)


def _with_store(words: str, store: Store | None) -> str:
    """Return the command with MLFLOW_TRACKING_URI in front if it would not find the store otherwise.

    A record may be somebody else's, so a command does not take the store from it.
    """
    known = (None, os.environ.get("MLFLOW_TRACKING_URI"))
    if store is None or store.is_in_outputs or store.uri in known or store.uri is None:
        return words
    return with_variable("MLFLOW_TRACKING_URI", store.uri, words)


def _version(package: str) -> str:
    if package == "torch" and "torch" in sys.modules:
        return str(sys.modules["torch"].__version__)
    try:
        return importlib.metadata.version(_OWN if package == "sweep" else package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "unknown"
