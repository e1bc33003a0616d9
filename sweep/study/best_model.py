"""The model of a study's best trial: its predictions for the test split, and a model of MLflow's, as a run has them."""

from collections.abc import Callable

from sweep.config.nodes import Tracking
from sweep.config.schema import Config
from sweep.tracking.folders import Busy, RunFolder, StudyFolder
from sweep.tracking.run_recorder import add_model, remove_model
from sweep.trial.model_files import has_model_files, make_model_files
from sweep.trial.prepare import Data
from sweep.trial.stored_model import OfAnotherVersion, best_run
from sweep.utils.errors import ConfigError, one_line


def keep_best_model(folder: StudyFolder, tracking: Tracking, load: Callable[[Config], Data]) -> str | None:
    """Make predictions.parquet and model.yaml of the best trial, unless it has them, and have MLflow get its model.

    Nothing is trained. If another trial was the best before, its files stay, and so do its model and its version in
    MLflow; but no other store gets it.

    Args:
        folder: the study's folder, with best.yaml if a trial is complete.
        tracking: says whether MLflow gets a model, and its name in the registry.
        load: loads and divides the data.

    Returns:
        None, or in one line what is missing, and why. The study's results do not depend on it.
    """
    if not folder.best.exists():
        return None
    try:
        problem = _make_files(folder, best_run(folder), tracking, load)
    except Busy:
        problem = "another process holds its record"
    except OfAnotherVersion:  # whose studies had no such files
        return None
    except ConfigError as error:
        problem = error.problem
    except Exception as error:  # your own model, task or data may raise anything
        problem = one_line(error)
    lacks = "the best trial lacks predictions.parquet or its model in MLflow"
    return problem and f"{lacks} ({problem}); the same command tries again"


def _make_files(folder: StudyFolder, best: RunFolder, tracking: Tracking, load: Callable[[Config], Data]) -> str | None:
    """Do the work of `keep_best_model`. Return None, or which file cannot be written."""
    problem = None
    if not has_model_files(best):
        problem = make_model_files(best, load)
    if tracking.mlflow:
        for run in folder.with_model():
            if run.path != best.path:
                remove_model(run)
        add_model(best, tracking)
        best.copy_mark.unlink(missing_ok=True)  # this machine sends the model, if another one sent the rest
    return problem
