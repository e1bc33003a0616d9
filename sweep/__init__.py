"""Experiments and sweeps for PyTorch, composed by Hydra.

As a library: `run_trial(compose(["optimizer=adam"]))`. Nothing heavy is imported until it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweep.composition import compose as compose
    from sweep.data import Samples as Samples
    from sweep.errors import ConfigError as ConfigError
    from sweep.errors import Diverged as Diverged
    from sweep.trial import Outcome as Outcome
    from sweep.trial import run_trial as run_trial

__version__ = "0.1.0"

_HOMES = {
    "compose": "sweep.composition",
    "Samples": "sweep.data",
    "ConfigError": "sweep.errors",
    "Diverged": "sweep.errors",
    "Outcome": "sweep.trial",
    "run_trial": "sweep.trial",
}

__all__ = ["ConfigError", "Diverged", "Outcome", "Samples", "compose", "run_trial"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sweep' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
