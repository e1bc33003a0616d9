"""Reads an earlier run, to resume it or to check that its record is complete."""

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
from sweep.config.schema import Config, literal, structured, validate
from sweep.tracking import journal as journals
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.training.trial import OF_FUNCTION
from sweep.utils.checked_file import load_checked, read_checked
from sweep.utils.errors import ConfigError, Damaged, DamagedJournal, UnendedJournal, one_line


def stored_config(run: RunFolder, own: Config) -> Config:
    """Return the config of an earlier run that did not finish, with the user's own output settings.

    Args:
        run: the folder of the earlier run.
        own: the user's config. `output_dir` and `tracking.uri` come from it.

    Raises:
        ConfigError: the run has finished, or the stored config is invalid.
        Damaged: a file of the run is damaged.
    """
    require_run(run.path)
    try:
        ending = journals.status(run.journal)
    except DamagedJournal as error:
        raise error.with_remedy(f"put back a copy of it, or {ANEW}") from error
    if ending == "FINISHED":
        raise ConfigError("resume", f"the run in '{run.path}' has finished; there is nothing left to do")
    plain = dict(load_checked(run.config, "resume", ANEW))
    if run.overrides.exists():  # it is sent to MLflow later, so check it now
        read_checked(run.overrides, "resume", ANEW)
    plain |= {"resume": None, "from_study": None, "output_dir": own.output_dir}
    tracking = plain.get("tracking")
    known = tracking if isinstance(tracking, dict) else asdict(own.tracking)
    plain["tracking"] = {**known, "uri": own.tracking.uri}
    return _validated(run, plain, "resume")


def config_of(run: RunFolder, key: str) -> Config:
    """Return the config of an earlier run, finished or not.

    Args:
        run: the folder of the run.
        key: the config key that an error names.

    Raises:
        ConfigError: the run has no config, or an invalid one.
        Damaged: the config is damaged.
    """
    if not run.config.is_file():
        raise ConfigError(key, f"'{run.path}' has no {run.config.name}")
    plain = dict(load_checked(run.config, key, ANEW))
    return _validated(run, plain | {"resume": None, "from_study": None}, key)


def _validated(run: RunFolder, plain: dict[str, Any], key: str) -> Config:
    """Return the content of a run's config.yaml as a config. Raise ConfigError or Damaged, about `key`."""
    try:
        merged = OmegaConf.merge(structured(), OmegaConf.create(literal(plain)))
    except OmegaConfBaseException as error:
        raise Damaged(key, run.config, one_line(error, 120), ANEW) from error
    assert isinstance(merged, DictConfig)
    return validate(merged)


def saved_state(run: RunFolder) -> dict[str, Any] | None:
    """Return the state in the run's checkpoint; None if there is no checkpoint.

    Raises:
        Damaged: the checkpoint or the journal is damaged, or the journal has fewer epochs than the checkpoint.
        ConfigError: the checkpoint is of another version of sweep.
    """
    from sweep.training import checkpoint

    if not run.checkpoint.exists():
        return None
    state = checkpoint.load(run.checkpoint)
    if _lacks_epochs(run, state):
        raise Damaged("resume", run.journal, "it lacks epochs that the checkpoint has", "start a new run")
    return state


def require_not_ended(run: RunFolder) -> None:
    """Raise UnendedJournal if a journal without an `end` must have had one, or DamagedJournal if it lacks epochs.

    The other files of the run or the study show whether it ended, and how many epochs it recorded.
    """
    reason = "the process died as it ended, or lines are lost"
    if run.best.exists():
        raise UnendedJournal(run.journal, None, reason, "resume the run, or put back a copy of the file")
    if StudyFolder(run.path).results.exists() and journals.first(run.journal, "end") is None:
        raise UnendedJournal(run.journal, None, reason, "run the study's command again, or put back a copy of the file")
    state: dict[str, Any] = {"epoch": 0}
    if run.checkpoint.exists():
        from sweep.training import checkpoint

        with suppress(ConfigError):  # the checkpoint is not part of the record
            state = checkpoint.load(run.checkpoint)
    if _lacks_epochs(run, state):
        raise DamagedJournal(run.journal, None, "it lacks epochs that the checkpoint has")


def _lacks_epochs(run: RunFolder, state: Mapping[str, Any]) -> bool:
    """Return whether the journal has fewer epochs than the checkpoint. The journal is always written first."""
    curves = journals.curves(run.journal)
    if isinstance(kept := state.get(OF_FUNCTION), dict):
        return kept["reported"] > max((int(curve.steps[-1]) for curve in curves.values()), default=-1)
    reported = [name for name in curves if not name.startswith("step/")]
    if reported and "val/loss" not in reported:  # a custom training function may report other metrics
        return False
    return state["epoch"] > (curves["val/loss"].steps[-1] if reported else 0)


def study_command(run: RunFolder) -> str | None:
    """Return the command that resumes the study to which the run belongs; None for a run outside a study.

    The run may also be the study's parent run. If the study's record names no command of sweep's, return a description
    such as "the command of the study in 'FOLDER'".
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
