"""Experiments and sweeps for PyTorch, composed by Hydra.

As a library: `run_study(["model=mlp"], {"optimizer": ["sgd", "adam"]}, n_trials=20)` (sweep/api.py). Large packages
such as torch are imported only when they are used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweep.api import load_study as load_study
    from sweep.api import run_comparison as run_comparison
    from sweep.api import run_lr_range as run_lr_range
    from sweep.api import run_study as run_study
    from sweep.api import write_report as write_report
    from sweep.config.composition import compose as compose
    from sweep.data import Datasets as Datasets
    from sweep.data import Samples as Samples
    from sweep.manage import list_studies as list_studies
    from sweep.manage import move_outputs as move_outputs
    from sweep.manage import remove_study as remove_study
    from sweep.manage import retry_trials as retry_trials
    from sweep.manage import stop_study as stop_study
    from sweep.tracking.syncing import sync_outputs as sync_outputs
    from sweep.training.callbacks import Callback as Callback
    from sweep.training.callbacks import StopTraining as StopTraining
    from sweep.training.trial import Trial as Trial
    from sweep.trial.current import current_trial as current_trial
    from sweep.trial.model_export import export_model as export_model
    from sweep.trial.node import build as build
    from sweep.trial.outcome import Outcome as Outcome
    from sweep.trial.run import run_trial as run_trial
    from sweep.trial.stored_model import load_model as load_model
    from sweep.utils.errors import ConfigError as ConfigError
    from sweep.utils.errors import Diverged as Diverged

_HOMES = {
    "compose": "sweep.config.composition",
    "Datasets": "sweep.data",
    "Samples": "sweep.data",
    "ConfigError": "sweep.utils.errors",
    "Diverged": "sweep.utils.errors",
    "Outcome": "sweep.trial.outcome",
    "Callback": "sweep.training.callbacks",
    "StopTraining": "sweep.training.callbacks",
    "Trial": "sweep.training.trial",
    "build": "sweep.trial.node",
    "current_trial": "sweep.trial.current",
    "run_trial": "sweep.trial.run",
    "export_model": "sweep.trial.model_export",
    "sync_outputs": "sweep.tracking.syncing",
    "load_model": "sweep.trial.stored_model",
    "run_study": "sweep.api",
    "load_study": "sweep.api",
    "run_comparison": "sweep.api",
    "run_lr_range": "sweep.api",
    "write_report": "sweep.api",
    "list_studies": "sweep.manage",
    "move_outputs": "sweep.manage",
    "remove_study": "sweep.manage",
    "retry_trials": "sweep.manage",
    "stop_study": "sweep.manage",
}

__all__ = [
    "Callback",
    "ConfigError",
    "Datasets",
    "Diverged",
    "Outcome",
    "Samples",
    "StopTraining",
    "Trial",
    "build",
    "compose",
    "current_trial",
    "export_model",
    "list_studies",
    "load_model",
    "load_study",
    "move_outputs",
    "remove_study",
    "retry_trials",
    "run_comparison",
    "run_lr_range",
    "run_study",
    "run_trial",
    "stop_study",
    "sync_outputs",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # 0.05 s

        return version("hydra-sweep")
    if name not in _HOMES:
        raise AttributeError(f"module 'sweep' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
