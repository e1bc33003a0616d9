"""Which tracking store a trial is mirrored to, said without importing MLflow."""

import os
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf

from sweep.config import Tracking, literal
from sweep.errors import ConfigError, Damaged
from sweep.record import journal
from sweep.record.checked import load_checked
from sweep.record.folder import RunFolder

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # MLflow would keep their artifacts in ./mlruns
_SCHEMES = ("http", "https", *_DATABASES, "databricks")


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
    _check_scheme("tracking.uri" if tracking.uri else "MLFLOW_TRACKING_URI", uri)
    return Store(uri, _artifact_root(uri, output_dir))


def _artifact_root(uri: str, output_dir: Path) -> Path | None:
    return output_dir / "mlartifacts" if uri.startswith(_DATABASES) else None


def _check_scheme(key: str, uri: str) -> None:
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme in _SCHEMES or any(point.name == scheme for point in entry_points(group="mlflow.tracking_store")):
        return
    raise ConfigError(key, f"'{without_password(uri)}' is of no kind that MLflow takes; choose {', '.join(_SCHEMES)}")


def recorded_uri(store: Store, output_dir: Path) -> str | None:
    """How a run's record names its store: None for the one in `output_dir`, which may be moved; without a password."""
    own = f"sqlite:///{output_dir}/mlflow.db"
    return None if store.uri in (None, own) else without_password(store.uri)


def store_of(run: RunFolder, tracking: Tracking, output_dir: Path) -> Store:
    """Where the run belongs: the store it began in, whatever MLFLOW_TRACKING_URI says now.

    Raises ConfigError when that takes a password which only the environment can give.
    """
    store = tracking_store(tracking, output_dir)
    start = journal.first(run.journal, "start")
    if start is None or store.uri is None or recorded_uri(store, output_dir) == start["store"]:
        return store
    if start["store"] is None:
        return Store(f"sqlite:///{output_dir}/mlflow.db", output_dir / "mlartifacts")
    if "***" in start["store"]:
        raise ConfigError("MLFLOW_TRACKING_URI", f"the run belongs to {start['store']}; set it so, with the password")
    return Store(start["store"], _artifact_root(start["store"], output_dir))


def recorded_store(run: RunFolder, uri: str | None = None) -> Store | None:
    """Where a run that began belongs by its record, or `uri`; None when its tracking is off or it never started.

    Raises ConfigError as `store_of` does.
    """
    output_dir = output_dir_of(run)
    if output_dir is None:
        return None
    tracking = _recorded_tracking(run, is_needed=uri is None)
    if uri is not None:
        tracking.uri = uri
    store = store_of(run, tracking, output_dir) if uri is None else tracking_store(tracking, output_dir)
    return store if store.uri else None


def _recorded_tracking(run: RunFolder, is_needed: bool) -> Tracking:
    """What the run's config says of tracking. Raises Damaged if that is needed; the default will do otherwise."""
    try:
        stored = load_checked(run.config, "output_dir", "its journal may be whole: name its store with --uri")
    except Damaged:
        if is_needed:
            raise
        return Tracking()
    known = OmegaConf.create(literal(stored.get("tracking", {})))
    tracking = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Tracking), known))
    assert isinstance(tracking, Tracking)
    return tracking


def without_password(uri: str) -> str:
    return re.sub(r"://([^:/@]*):[^/@]*@", r"://\1:***@", uri)


def output_dir_of(run: RunFolder) -> Path | None:
    """The absolute `output_dir` that a started run belongs to, wherever the tree is now; None before its start."""
    start = journal.first(run.journal, "start")
    return None if start is None else Path(os.path.normpath(run.path / start["output_dir"]))
