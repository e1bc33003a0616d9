"""An earlier run, read again: to resume it, and to see whether its record is whole."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.config.outputs import ANEW, require_run
from sweep.config.overrides import known_command
from sweep.config.schema import Config, literal, validate
from sweep.tracking import journal as journals
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.utils.checked_file import load_checked, read_checked
from sweep.utils.errors import ConfigError, Damaged, DamagedJournal, one_line


def stored_config(run: RunFolder, own: Config) -> Config:
    """The config of an earlier trial that did not finish, but for where results go: `own`, the user's, says that.

    Raises ConfigError, or Damaged.
    """
    require_run(run.path)
    try:
        ending = journals.status(run.journal)
    except DamagedJournal as error:
        raise error.with_remedy(f"put back a copy of it, or {ANEW}") from error
    if ending == "FINISHED":
        raise ConfigError("resume", f"the run in '{run.path}' has finished; there is nothing left to do")
    plain = dict(load_checked(run.config, "resume", ANEW))
    if run.overrides.exists():  # which MLflow gets
        read_checked(run.overrides, "resume", ANEW)
    plain |= {"resume": None, "from_study": None, "output_dir": own.output_dir}
    tracking = plain.get("tracking")
    known = tracking if isinstance(tracking, dict) else asdict(own.tracking)
    plain["tracking"] = {**known, "uri": own.tracking.uri}
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(literal(plain)))
    except OmegaConfBaseException as error:
        raise Damaged("resume", run.config, one_line(error, 120), ANEW) from error
    assert isinstance(merged, DictConfig)
    return validate(merged)


def saved_state(run: RunFolder) -> dict[str, Any] | None:
    """The state in the run's checkpoint, if it has one. Raises Damaged, or ConfigError.

    A journal that has fewer epochs than the checkpoint is damaged.
    """
    from sweep.training import checkpoint

    if not run.checkpoint.exists():
        return None
    state = checkpoint.load(run.checkpoint)
    if _lacks_epochs(run, state):
        raise Damaged("resume", run.journal, "it lacks epochs that the checkpoint has", "start a new run")
    return state


def require_not_ended(run: RunFolder) -> None:
    """Raises DamagedJournal if a record without an end has lost it, as other files of the run or the study show."""
    remedy = "put back a copy of it, or go on with the run"
    is_over = run.best.exists() or (
        StudyFolder(run.path).results.exists() and journals.first(run.journal, "end") is None
    )
    if is_over:
        raise DamagedJournal(run.journal, None, "it has no end, though the run came to one", remedy)
    state: dict[str, Any] = {"epoch": 0}
    if run.checkpoint.exists():
        from sweep.training import checkpoint

        with suppress(ConfigError):  # the checkpoint is not part of the record
            state = checkpoint.load(run.checkpoint)
    if _lacks_epochs(run, state):
        raise DamagedJournal(run.journal, None, "it lacks epochs that the checkpoint has")


def _lacks_epochs(run: RunFolder, state: Mapping[str, Any]) -> bool:
    """Whether the record is shorter than the checkpoint, which is always the younger one."""
    curves = journals.curves(run.journal)
    reported = [name for name in curves if not name.startswith("step/")]
    if reported and "val/loss" not in reported:  # a training function reports what it likes
        return False
    return state["epoch"] > (len(curves["val/loss"].steps) if reported else 0)


def study_command(run: RunFolder) -> str | None:
    """The command that goes on with the study that the run is a trial of, or its parent; None for a run of its own.

    Where the study's record cannot be read, or has no command of ours, it is said in words.
    """
    start = journals.first(run.journal, "start") or {}
    tags, parent = start.get("tags") or {}, start.get("parent")
    if tags.get("kind") == "study":
        return _command_of(tags, run)
    inside = re.search(r"/studies/[^/]+/trials/\d+(/seed-\d+)?$", run.path.as_posix())
    if parent is None and inside is None:
        return None
    study = RunFolder(run.path / parent["folder"] if parent else run.path.as_posix().rpartition("/trials/")[0])
    return _command_of((journals.first(study.journal, "start") or {}).get("tags") or {}, study)


def _command_of(tags: Mapping[str, Any], study: RunFolder) -> str:
    return known_command(tags.get("command")) or f"the command of the study in '{os.path.normpath(study.path)}'"
