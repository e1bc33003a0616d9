"""Which tracking store a trial is mirrored to, said without importing MLflow."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from sweep.config import Tracking
from sweep.errors import ConfigError
from sweep.record import journal
from sweep.record.folder import RunFolder

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # MLflow would keep their artifacts in ./mlruns


class Store(NamedTuple):
    """uri: MLflow's tracking URI, None for no tracking. artifact_root: for a store that does not choose its own."""

    uri: str | None
    artifact_root: Path | None


def tracking_store(tracking: Tracking, output_dir: Path) -> Store:
    """`tracking.uri`, else MLFLOW_TRACKING_URI, else a SQLite file below `output_dir`, which is absolute."""
    if not tracking.mlflow:
        return Store(None, None)
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri and "%" in str(output_dir):  # SQLAlchemy and MLflow disagree about its meaning in a URL
        raise ConfigError("output_dir", f"'{output_dir}' holds a %, so no MLflow store fits; choose another name")
    if uri and "://" not in uri and not uri.startswith("databricks"):
        key = "tracking.uri" if tracking.uri else "MLFLOW_TRACKING_URI"
        raise ConfigError(key, f"'{uri}' is no URI that MLflow 3 takes; write sqlite:///{uri.rstrip('/')}/mlflow.db")
    if uri and (file := re.fullmatch(r"sqlite:///([^/].*)", uri)):
        uri = f"sqlite:///{Path(file[1]).absolute()}"  # else it would mean another file elsewhere
    uri = uri or f"sqlite:///{output_dir}/mlflow.db"
    return Store(uri, output_dir / "mlartifacts" if uri.startswith(_DATABASES) else None)


def output_dir_of(run: RunFolder) -> Path | None:
    """The absolute `output_dir` that a started run belongs to, wherever the tree is now; None before its start."""
    start = journal.first(run.journal, "start")
    return None if start is None else Path(os.path.normpath(run.path / start["output_dir"]))
