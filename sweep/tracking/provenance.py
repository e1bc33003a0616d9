"""Where a run comes from: what it would take to run it again."""

import functools
import getpass
import importlib.metadata
import os
import platform
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from sweep.config.overrides import command, sets, setting, with_variable
from sweep.config.schema import Config
from sweep.tracking.git import git
from sweep.tracking.store import Store

_OWN = "hydra-sweep"  # the distribution of the package `sweep`
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
    rerun = "" if overrides is None else rerun_command(overrides)
    return {**_setting(), "command": rerun, "mlflow.source.name": rerun or "sweep.run_trial"}


def uncommitted_diff() -> str:
    """What differs from the last commit in the working directory's repository; empty without one."""
    diff = git("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty")
    return diff + "\n" if diff else ""


def rerun_command(overrides: Sequence[str]) -> str:
    return command("sweep.run", *overrides)


def resume_command(folder: Path, store: Store | None = None) -> str:
    """The command that continues the run in `folder`, quoted for Hydra and for the shell, and so that it is sent on to
    `store`."""
    return _with_store(rerun_command([setting("resume", str(folder))]), store)


def from_study_command(study: str, output_dir: Path, overrides: Sequence[str] = ()) -> str:
    """The command that trains the best of a study again; `output_dir`, where the study is, is told if it need be.

    overrides: those of the best. The folders that its options come from have to be on the command itself.
    """
    usual = output_dir == Path(Config.output_dir).absolute()
    folders = [o for o in overrides if sets(o, "hydra.searchpath")]
    place = [] if usual else [setting("output_dir", str(output_dir))]
    return rerun_command([setting("from_study", study), *place, *folders])


def report_command(study: str, output_dir: Path, storage: str | None = None) -> str:
    """The command that makes a page of a study; `output_dir`, where the study is, is told if it need be.

    storage: one that its record alone may not name.
    """
    usual = output_dir == Path(Config.output_dir).absolute()
    options = [] if usual else ["--output-dir", output_dir]
    options += [] if storage is None else ["--storage", storage]
    return command("sweep.report", *options, *(["--"] if study.startswith("-") else []), study)


def sync_command(output_dir: Path, store: Store) -> str:
    """The command that sends to MLflow what is missing there."""
    return _with_store(command("sweep.sync", output_dir), store)


def _with_store(words: str, store: Store | None) -> str:
    """The command, and before it the store where only a config names it: what a record says of it does not count."""
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
    except (KeyError, OSError):  # a container without a name for its user
        return "unknown"
