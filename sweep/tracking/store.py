"""Which tracking store a trial is mirrored to, said without importing MLflow."""

import os
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.config.nodes import Tracking
from sweep.config.overrides import setting, word
from sweep.config.schema import literal
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.utils.checked_file import load_checked
from sweep.utils.errors import ConfigError, Damaged, one_line
from sweep.utils.passwords import is_hidden, without_password
from sweep.utils.paths import absolute

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # MLflow would keep their artifacts in ./mlruns
_SCHEMES = ("http", "https", *_DATABASES, "databricks")


class Store(NamedTuple):
    """uri: MLflow's tracking URI, None for no tracking. artifact_root: for a store that does not choose its own."""

    uri: str | None
    artifact_root: Path | None

    @property
    def lock(self) -> Path | None:
        """The file that whoever opens the store makes and locks; None for a store that has its own artifact root."""
        return None if self.artifact_root is None else self.artifact_root.parent / ".mlflow.lock"

    @property
    def is_in_outputs(self) -> bool:
        """Whether it is the file in an `output_dir`, which whoever made that folder may have written."""
        root = self.artifact_root
        return self.uri is not None and root is not None and self.uri == _own_uri(root.parent)


def sqlite_url(path: Path) -> str:
    """Return the URL of a SQLite file, which MLflow and SQLAlchemy read alike. Raises ValueError where none is."""
    if found := re.search("[?#%]", str(path)):
        raise ValueError(f"holds a {found[0]}, which MLflow misreads in its store's URL")
    return f"sqlite:///{path.absolute()}"


def own_store(output_dir: Path) -> Store:
    """Return the store in `output_dir`, which is absolute. Raises ConfigError where no URL fits."""
    try:
        return Store(sqlite_url(output_dir / "mlflow.db"), output_dir / "mlartifacts")
    except ValueError as error:
        problem = f"'{output_dir}' {error}; choose another name, or set tracking=off"
        raise ConfigError("output_dir", problem) from error


def _own_uri(output_dir: Path) -> str | None:
    try:
        return own_store(output_dir).uri
    except ConfigError:
        return None


def tracking_store(tracking: Tracking, output_dir: Path) -> Store:
    """`tracking.uri`, else MLFLOW_TRACKING_URI, else a SQLite file below `output_dir`, which is absolute."""
    if not tracking.mlflow:
        return Store(None, None)
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return own_store(output_dir)
    key = "tracking.uri" if tracking.uri else "MLFLOW_TRACKING_URI"
    if is_hidden(uri):
        raise ConfigError(key, f"'{uri}' lacks its password; write it in place of ***")
    if "://" not in uri and not uri.startswith("databricks"):
        try:
            remedy = f"write {sqlite_url(absolute(uri) / 'mlflow.db')}"
        except ValueError:
            remedy = "write sqlite:///path/mlflow.db"
        raise ConfigError(key, f"'{without_password(uri)}' is no URI that MLflow 3 takes; {remedy}")
    if file := re.fullmatch(r"sqlite:///([^/?#%].*)", uri):
        uri = f"sqlite:///{absolute(file[1])}"  # else it would mean another file elsewhere
    _check_scheme(key, uri)
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
    return None if store.uri in (None, _own_uri(output_dir)) else without_password(store.uri)


def store_of(run: RunFolder, tracking: Tracking, output_dir: Path) -> Store:
    """Where the run belongs: the store it began in, whatever MLFLOW_TRACKING_URI says now.

    tracking: the user's own. The record may be somebody else's, so one that names another store than the user's does
    not decide where the run is sent. Raises ConfigError for that.
    """
    start = journal.first(run.journal, "start")
    if not tracking.mlflow or start is None:
        return tracking_store(tracking, output_dir)
    if start["store"] is None:
        return own_store(output_dir)
    store = tracking_store(tracking, output_dir)
    if recorded_uri(store, output_dir) == start["store"]:
        return store
    suffix = " with its password" if "***" in str(start["store"]) else ""
    problem = f"'{run.path}' was begun in {start['store']}, which is not your own setting; if you trust that, set it"
    raise ConfigError("tracking.uri", f"{problem}{suffix}, or MLFLOW_TRACKING_URI")


def recorded_store(run: RunFolder, uri: str | None = None) -> Store | None:
    """Where a run that began belongs by its record, or `uri`; None when its tracking is off or it never started.

    Raises ConfigError as `store_of` does.
    """
    output_dir = output_dir_of(run)
    if output_dir is None:
        return None
    recorded = recorded_tracking(run, is_needed=uri is None)
    tracking = Tracking(mlflow=recorded.mlflow, uri=uri)  # where to, the record does not say
    store = store_of(run, tracking, output_dir) if uri is None else tracking_store(tracking, output_dir)
    return store if store.uri else None


def recorded_tracking(run: RunFolder, is_needed: bool = False) -> Tracking:
    """What the run's config says of tracking. Raises Damaged if that is needed; the default will do otherwise."""
    key, remedy = "output_dir", "its journal may be whole: name its store with --uri"
    try:
        try:
            known = OmegaConf.create(literal(load_checked(run.config, key, remedy).get("tracking", {})))
            tracking = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Tracking), known))
        except (OSError, OmegaConfBaseException, TypeError, ValueError) as error:
            reason = "it is gone" if isinstance(error, FileNotFoundError) else one_line(error, 120)
            raise Damaged(key, run.config, reason, remedy) from error
    except Damaged:
        if is_needed:
            raise
        return Tracking()
    assert isinstance(tracking, Tracking)
    return tracking


def output_dir_of(run: RunFolder) -> Path | None:
    """The absolute `output_dir` that a started run belongs to, wherever the tree is now; None before its start.

    The record may be somebody else's: check the place with `belongs_to` before writing to it.
    """
    start = journal.first(run.journal, "start")
    return None if start is None else Path(os.path.normpath(run.path / str(start["output_dir"])))


def belongs_to(run: RunFolder, own: Path) -> Path:
    """Return the `output_dir` of a run that is there, if that is `own`, the user's, or the one that the run lies in.

    Raises ConfigError where its record names another one.
    """
    around, recorded = output_dir_around(run.path), output_dir_of(run)
    if recorded is None:
        return around or own
    if recorded in (own, around):
        return recorded
    problem = f"'{run.path}' names '{recorded}' as its own, which it does not lie in; if you trust that, add "
    raise ConfigError("output_dir", f"{problem}{word(setting('output_dir', str(recorded)))}")


def output_dir_around(run: Path) -> Path | None:
    """The `output_dir` that a run's folder lies in, by the names of the folders between."""
    trial = run.parent if run.name.startswith("seed-") else run
    for folder, kind, depth in ((run, "runs", 1), (run, "multirun", 2), (run, "studies", 1), (trial, "studies", 3)):
        above = [folder, *folder.parents]
        if len(above) > depth + 1 and above[depth].name == kind and (depth < 3 or above[1].name == "trials"):
            return above[depth + 1]
    return None
