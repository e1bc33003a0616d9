"""Find a trained model by the folder of its run, the name of a study or an MLflow run id, and load it."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.config.best_config import stored_best
from sweep.config.function_node import CALL
from sweep.config.nodes import Tracking
from sweep.config.outputs import BEST, require_study
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.tracking.store import tracking_store
from sweep.utils.errors import ConfigError, Damaged
from sweep.utils.paths import absolute, refuse_links_in

if TYPE_CHECKING:
    from sweep.trial.predictor import Predictor

KEY = "run"
_RUN_ID = re.compile("[0-9a-f]{32}")
_REMEDY = "put back a copy of it, or train the model again"
# Where an `output_dir` has the folders of runs and studies.
_FOLDERS = ("runs/*", "multirun/*/*", "studies/*", "studies/*/trials/*", "studies/*/trials/*/seed-*")


def load_model(
    run: str | Path, *, output_dir: str | Path = "outputs", tracking_uri: str | None = None, device: str = "cpu"
) -> "Predictor":
    """Load a trained model with its preprocessing. Reading it runs no code that the file contains.

    Args:
        run: the folder of a run; the name of a study, or its folder, for the model of its best trial; or an MLflow run
            id. A best trial with several seeds or folds has several models, of which this takes the first.
        output_dir: where studies and runs are found by name or id.
        tracking_uri: the tracking store of an MLflow run id; by default MLFLOW_TRACKING_URI, or the store in
            `output_dir`.
        device: where the model computes, as `trainer.device`.

    Returns:
        The model, see `Predictor`.

    Raises:
        ConfigError: there is no such run, it has no model, or the model's code is missing or not allowed.
        Damaged: best.pt is not as it was written.
    """
    with model_file(run, output_dir, tracking_uri) as path:
        return load_file(path, device)


class OfAnotherVersion(ConfigError):
    """A best.pt lacks facts that this version of sweep needs."""


def load_file(path: Path, device: str = "cpu") -> "Predictor":
    """Load the model in a best.pt. Raise as `load_model` does."""
    from sweep.training import checkpoint
    from sweep.trial.model_facts import FACTS, ModelFacts
    from sweep.trial.predictor import restored

    state = checkpoint.load(path, KEY, _REMEDY)
    stored: Any = state.get(FACTS)
    if "model" not in state or (stored is None and "epoch" not in state):
        raise ConfigError(KEY, f"'{path}' holds no trained model")
    if stored is None:
        problem = "holds only weights: an earlier version wrote it, without preprocessing, classes and the scale of "
        raise OfAnotherVersion(KEY, f"'{path}' {problem}targets; train the model again")
    try:
        facts = ModelFacts.from_stored(stored)
    except TypeError as error:
        raise OfAnotherVersion(KEY, f"'{path}' is of another version of sweep; train the model again") from error
    return restored(state, facts, device)


def _load_pyfunc(path: str) -> "Predictor":
    """Load the model that MLflow has a copy of. MLflow calls this by its name."""
    return load_file(Path(path))


@contextmanager
def model_file(run: str | Path, output_dir: str | Path, tracking_uri: str | None = None) -> Iterator[Path]:
    """Hold the best.pt of a run. See `load_model` for the arguments and errors."""
    outputs, path = absolute(output_dir), absolute(run)
    is_name = isinstance(run, str) and len(Path(run).parts) == 1
    if path.is_file():
        yield path
    elif path.is_dir() and (not is_name or any((path / name).exists() for name in (RunFolder(path).best.name, BEST))):
        yield _model_in(path)
    elif not is_name:
        raise ConfigError(KEY, f"there is no folder '{path}'; give the one that the run printed")
    elif not _RUN_ID.fullmatch(str(run)):
        _require_study(outputs, str(run))
        yield _model_in(outputs / "studies" / str(run))
    elif (folder := _folder_of_id(outputs, str(run))) is not None:
        yield _model_in(folder)
    else:
        with tempfile.TemporaryDirectory() as place:
            yield _from_store(str(run), outputs, tracking_uri, Path(place))


def _require_study(outputs: Path, name: str) -> None:
    try:
        require_study(outputs, name)
    except ConfigError as error:
        raise ConfigError(KEY, error.problem) from error


def _model_in(folder: Path) -> Path:
    """Return the best.pt in the folder of a run, or of the best trial of a study. Raise ConfigError without one."""
    study = StudyFolder(folder)
    if study.best.exists():
        return best_run(study).best
    run = RunFolder(folder)
    if run.best.exists():
        return run.best
    _refuse_function(run)
    if study.trials.is_dir():
        raise ConfigError(KEY, f"the study in '{folder}' has no complete trial yet")
    what = "has no best.pt: the run has not finished" if run.journal.exists() else "is not the folder of a run"
    raise ConfigError(KEY, f"'{folder}' {what}")


def _refuse_function(run: RunFolder) -> None:
    """Raise ConfigError if a training function of the user's own trained the run."""
    call = (journal.first(run.journal, "start") or {}).get("params", {}).get(CALL)
    if call is not None:
        raise ConfigError(
            KEY, f"{call} trained '{run.path}', and keeps models in a form of its own; load them yourself"
        )


def best_run(study: StudyFolder) -> RunFolder:
    """Return the run whose model is that of a study: the first of its best trial.

    With several seeds or folds it is not the run with the best value, which may only have been lucky.

    Args:
        study: the study's folder, with best.yaml.

    Raises:
        ConfigError: the run's files are not there, or the study's folder has links.
        Damaged: best.yaml cannot be read.
    """
    refuse_links_in(study.path, KEY)
    number = stored_best(study.best, KEY).get("trial")
    if not isinstance(number, int):
        raise Damaged(KEY, study.best, "it names no trial", "run the study's command again, which writes it anew")
    runs = [study.trial(number), study.trial(number, 0)]
    found = next((run for run in runs if run.best.exists()), None)
    if found is None:
        for run in runs:
            _refuse_function(run)
        message = f"its best trial is {number}, whose files are not in '{runs[0].path}'; they may be elsewhere"
        raise ConfigError(KEY, f"'{study.path.name}': {message}")
    return found


def _folder_of_id(outputs: Path, run_id: str) -> Path | None:
    """Return the folder of the run, or of the study, that was uploaded under an id; None if it is not below `outputs`.

    Each run stores its ids in mlflow.json.
    """
    for pattern in _FOLDERS:
        for state in outputs.glob(f"{pattern}/{RunFolder('.').sync_state.name}"):
            if f'"{run_id}"' in state.read_text(errors="replace"):
                return state.parent
    return None


def _from_store(run_id: str, outputs: Path, uri: str | None, place: Path) -> Path:
    """Download the best.pt of a run from its tracking store. Raise ConfigError if that fails."""
    store = tracking_store(Tracking(uri=uri), outputs)
    if store.is_in_outputs and not Path(str(store.uri).removeprefix("sqlite:///")).exists():
        raise ConfigError(KEY, f"no run below '{outputs}' has the id {run_id}, and there is no tracking store")
    from sweep.tracking.mlflow_models import download_model

    return download_model(store, run_id, place)
