"""Determines the tracking store of a run. Imports no MLflow."""

import os
import re
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.config.nodes import Tracking
from sweep.config.overrides import setting, word
from sweep.config.schema import Config, literal
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.utils.checked_file import load_checked
from sweep.utils.errors import ConfigError, Damaged, one_line
from sweep.utils.passwords import is_hidden, without_password
from sweep.utils.paths import absolute, refuse_links_at

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # MLflow itself would keep their artifacts in ./mlruns
_SCHEMES = ("http", "https", *_DATABASES, "databricks")


class Store(NamedTuple):
    """A tracking store.

    Attributes:
        uri: MLflow's tracking URI; None if tracking is off.
        artifact_root: the folder for artifacts; None if the store chooses its own.
    """

    uri: str | None
    artifact_root: Path | None

    @property
    def lock(self) -> Path | None:
        """The lock file to hold while the store is created; None if the store chooses its own artifact root."""
        return None if self.artifact_root is None else self.artifact_root.parent / ".mlflow.lock"

    @property
    def is_file(self) -> bool:
        """Whether the store is a file, which other machines do not reach."""
        return self.uri is not None and self.uri.startswith("sqlite")

    @property
    def is_in_outputs(self) -> bool:
        """Whether the store is a file in an `output_dir`. Such a file may come from somebody else."""
        root = self.artifact_root
        return self.uri is not None and root is not None and self.uri == _own_uri(root.parent)


def sqlite_url(path: Path) -> str:
    """Return the URL of a SQLite file.

    Raises ValueError if the path contains a character that MLflow and SQLAlchemy read differently.
    """
    if found := re.search("[?#%]", str(path)):
        raise ValueError(f"contains a {found[0]}, which MLflow misreads in its store's URL")
    return f"sqlite:///{path.absolute()}"


def own_store(output_dir: Path) -> Store:
    """Return the store in `output_dir`, an absolute path. Raise ConfigError if the path does not fit into a URL."""
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
    """Return the store that the user has set.

    This is `tracking.uri`, else MLFLOW_TRACKING_URI, else a SQLite file in `output_dir`, an absolute path. Raises
    ConfigError if MLflow does not support the URI.
    """
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
        raise ConfigError(key, f"'{without_password(uri)}' is not a URI that MLflow 3 accepts; {remedy}")
    if file := re.fullmatch(r"sqlite:///([^/?#%].*)", uri):
        uri = f"sqlite:///{absolute(file[1])}"  # a relative path would mean another file in another directory
    _check_scheme(key, uri)
    return Store(uri, _artifact_root(uri, output_dir))


def _artifact_root(uri: str, output_dir: Path) -> Path | None:
    return output_dir / "mlartifacts" if uri.startswith(_DATABASES) else None


def _check_scheme(key: str, uri: str) -> None:
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme in _SCHEMES or any(point.name == scheme for point in entry_points(group="mlflow.tracking_store")):
        return
    raise ConfigError(key, f"'{without_password(uri)}' is not supported by MLflow; choose {', '.join(_SCHEMES)}")


def recorded_uri(store: Store, output_dir: Path) -> str | None:
    """Return the URI by which a run's record names its store, without a password.

    Return None for the store in `output_dir`, so that the folder can be moved.
    """
    return None if store.uri in (None, _own_uri(output_dir)) else without_password(store.uri)


@dataclass(frozen=True)
class Destination:
    """Where a run is recorded: its folder, the folder that all results go to, and the tracking store."""

    run: RunFolder
    output_dir: Path
    store: Store

    @property
    def recorded(self) -> str | None:
        """The store as the run's record names it. See `recorded_uri`."""
        return recorded_uri(self.store, self.output_dir)


def destination_of(run: RunFolder, config: Config, in_study: bool = False) -> Destination:
    """Return where a run is recorded, which may have begun.

    Args:
        run: the run's folder.
        config: the config of the run, with the user's own output settings.
        in_study: whether the run is part of a study. The study decides where its runs are sent.

    Raises:
        ConfigError: the run's record names an `output_dir` or a store that is not the user's own, the `output_dir`
            contains links that lead out of it, or MLflow does not support the store.
    """
    own = absolute(config.output_dir)
    output_dir = belongs_to(run, own) if run.config.exists() else own
    refuse_links_at(output_dir)
    tracking = config.tracking
    store = tracking_store(tracking, output_dir) if in_study else store_of(run, tracking, output_dir)
    return Destination(run, output_dir, store)


def store_of(run: RunFolder, tracking: Tracking, output_dir: Path) -> Store:
    """Return the store in which the run began.

    The record may be somebody else's, so it cannot send the run to a store that the user has not set.

    Args:
        run: the run's folder.
        tracking: the user's own settings.
        output_dir: the folder that holds the run, an absolute path.

    Raises:
        ConfigError: the run began in a store that is neither the user's nor the one in `output_dir`.
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
    problem = f"'{run.path}' was started in {start['store']}, which is not your own setting; if you trust that, set it"
    raise ConfigError("tracking.uri", f"{problem}{suffix}, or MLFLOW_TRACKING_URI")


def recorded_store(run: RunFolder, uri: str | None = None) -> Store | None:
    """Return the store in which a run began, or that of `uri`; None if its tracking is off or it never started.

    Raises ConfigError as `store_of` does, and Damaged if `uri` is None and the run's config cannot be read.
    """
    output_dir = output_dir_of(run)
    if output_dir is None:
        return None
    recorded = recorded_tracking(run, is_needed=uri is None)
    tracking = Tracking(mlflow=recorded.mlflow, uri=uri)  # the record decides whether to track, not where
    store = store_of(run, tracking, output_dir) if uri is None else tracking_store(tracking, output_dir)
    return store if store.uri else None


def recorded_tracking(run: RunFolder, is_needed: bool = False) -> Tracking:
    """Return the tracking settings in the run's config.

    If they cannot be read, raise Damaged with `is_needed`, else return the default.
    """
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
    """Return the `output_dir` that a run's record names, an absolute path; None before its start.

    It is recorded relative to the run, so the tree may have been moved. The record may be somebody else's: check the
    folder with `belongs_to` before you write to it.
    """
    start = journal.first(run.journal, "start")
    return None if start is None else Path(os.path.normpath(run.path / str(start["output_dir"])))


def belongs_to(run: RunFolder, own: Path) -> Path:
    """Return the `output_dir` of an existing run: the user's `own`, or the one that contains the run.

    Raises ConfigError if the run's record names another one.
    """
    around, recorded = output_dir_around(run.path), output_dir_of(run)
    if recorded is None:
        return around or own
    if recorded in (own, around):
        return recorded
    problem = f"'{run.path}' names '{recorded}' as its output_dir, but lies elsewhere; if you trust that, add "
    raise ConfigError("output_dir", f"{problem}{word(setting('output_dir', str(recorded)))}")


def output_dir_around(run: Path) -> Path | None:
    """Return the `output_dir` that contains a run's folder, found by the folder names between them, or None."""
    trial = run.parent if run.name.startswith("seed-") else run
    for folder, kind, depth in ((run, "runs", 1), (run, "multirun", 2), (run, "studies", 1), (trial, "studies", 3)):
        above = [folder, *folder.parents]
        if len(above) > depth + 1 and above[depth].name == kind and (depth < 3 or above[1].name == "trials"):
            return above[depth + 1]
    return None
