"""The trial that this process is training, for code that is not handed its trial: `sweep.current_trial()`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from sweep.training.trial import Trial, UnrecordedTrial
from sweep.utils.terminal import complain

_current: ContextVar[Trial | None] = ContextVar("current_trial", default=None)
_in_process: list[Trial] = []  # for threads that the training starts, which do not see the context's variable


def current_trial() -> Trial:
    """Return the trial that is being trained.

    Outside a study it is a `Trial` all the same, so that the same code runs alone: it records nothing, has nothing to
    restore, and is never pruned or asked to stop. Its folder is that of Hydra's job, or else the working directory.
    """
    if (trial := _current.get()) is not None:
        return trial
    if _in_process:
        return _in_process[-1]
    alone = UnrecordedTrial()
    job: Any = HydraConfig.instance().cfg
    if job is not None:
        output_dir = OmegaConf.select(job, "hydra.runtime.output_dir", throw_on_missing=False)
        alone.folder = Path() if output_dir is None else Path(str(output_dir))
    return alone


@contextmanager
def training(trial: Trial) -> Iterator[None]:
    """Make `trial` the current one. A process that is forked meanwhile ends here: only its parent trains the trial."""
    process = os.getpid()
    token = _current.set(trial)
    _in_process.append(trial)
    try:
        yield
    finally:
        if os.getpid() != process:
            complain(f"warning: trial {trial.number}: a process that it forked ends; only the first goes on")
            os._exit(1)
        _in_process.remove(trial)
        _current.reset(token)
