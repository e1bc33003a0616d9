"""Experiments and sweeps for PyTorch, composed by Hydra.

As a library: `run_trial(compose(["optimizer=adam"]))`. Nothing heavy is imported until it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweep.config.composition import compose as compose
    from sweep.data import Samples as Samples
    from sweep.training.trial import Trial as Trial
    from sweep.trial.run import Outcome as Outcome
    from sweep.trial.run import run_trial as run_trial
    from sweep.utils.errors import ConfigError as ConfigError
    from sweep.utils.errors import Diverged as Diverged

_HOMES = {
    "compose": "sweep.config.composition",
    "Samples": "sweep.data",
    "ConfigError": "sweep.utils.errors",
    "Diverged": "sweep.utils.errors",
    "Outcome": "sweep.trial.run",
    "Trial": "sweep.training.trial",
    "run_trial": "sweep.trial.run",
}

__all__ = ["ConfigError", "Diverged", "Outcome", "Samples", "Trial", "compose", "run_trial"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # 0.05 s

        return version("hydra-sweep")
    if name not in _HOMES:
        raise AttributeError(f"module 'sweep' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
