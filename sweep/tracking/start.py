"""The start of a trial's record: who it is, in files and in the journal; and reading it again to resume it."""

import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.config.outputs import ANEW, require_run
from sweep.config.overrides import known_command
from sweep.config.schema import Config, literal, validate
from sweep.tracking.description import group_choices, hyperparameters, run_name
from sweep.tracking.folders import RunFolder
from sweep.tracking.journal import Journal, first, status
from sweep.tracking.provenance import provenance_tags, uncommitted_diff
from sweep.utils.checked_file import load_checked, read_checked, write_checked
from sweep.utils.errors import ConfigError, Damaged, DamagedJournal, one_line
from sweep.utils.files import to_yaml, write_atomic
from sweep.utils.passwords import without_password


@dataclass(frozen=True, kw_only=True)
class Membership:
    """A trial's place in a study. parent: the uid of the study's own record, in `folder`; replicate: which of several
    seeds it trains, from 0."""

    study: str
    folder: Path
    parent: str
    number: int
    replicate: int | None

    def tags(self) -> dict[str, str]:
        tags = {"study": self.study, "trial": str(self.number)}
        return tags if self.replicate is None else {**tags, "replicate": str(self.replicate)}


def write_start(
    journal: Journal,
    run: RunFolder,
    config: Config,
    data: Mapping[str, Any] | None,
    output_dir: Path,
    store: str | None,
    device: str | None,
    member: Membership | None = None,
) -> None:
    """Says who the trial is, in files and in the journal. A resumed one keeps its name and its `uid`.

    data: as `dataset` has it. store: as `recorded_uri` has it. device: the kind that the trial trains on. A trial that
    was refused before it had the last or the first has None for it.
    """
    earlier = first(run.journal, "start")
    known = None if earlier is None else earlier.get("dataset")  # None of a trial that was refused before it had any
    if known is not None and data is not None and known["digest"] != data["digest"]:
        raise ConfigError("resume", f"the data have changed since '{run.path}' began; start a new run")
    if earlier is None:
        if isinstance(path := config.data.get("path"), str):
            config.data["path"] = os.path.abspath(os.path.expanduser(path))  # so that it resumes from any directory
        write_checked(run.overrides, to_yaml(config.overrides or []))
        write_checked(run.config, stored_text(config))  # from here on it can be resumed
        if member is None and (diff := uncommitted_diff()):
            write_atomic(run.diff, diff)
    tags = {**provenance_tags(config.overrides), **group_choices(config)}
    parent = None
    if member is not None:
        tags |= member.tags()
        parent = {"uid": member.parent, "name": member.study, "folder": os.path.relpath(member.folder, run.path)}
    journal.event(
        "start",
        uid=uuid.uuid4().hex if earlier is None else earlier["uid"],
        name=run_name(config) if member is None else f"t{member.number}-{run_name(config)}",
        experiment=config.experiment_name,
        output_dir=os.path.relpath(output_dir, run.path),  # relative, so that the tree may be moved
        store=store,
        params=hyperparameters(config),
        tags=tags if device is None else {**tags, "device": device},
        parent=parent,
        **({} if data is None else {"dataset": data}),
    )


def stored_text(config: Config) -> str:
    """Return the config as a file keeps it, without the password of its store."""
    tracking = replace(config.tracking, uri=config.tracking.uri and without_password(config.tracking.uri))
    return to_yaml(asdict(replace(config, tracking=tracking)))


def stored_config(run: RunFolder, own: Config) -> Config:
    """The config of an earlier trial that did not finish, but for where results go: `own`, the user's, says that.

    Raises ConfigError, or Damaged.
    """
    require_run(run.path)
    try:
        ending = status(run.journal)
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


def study_command(run: RunFolder) -> str | None:
    """The command that goes on with the study that the run is a trial of, or its parent; None for a run of its own.

    Where the study's record cannot be read, or has no command of ours, it is said in words.
    """
    start = first(run.journal, "start") or {}
    tags, parent = start.get("tags") or {}, start.get("parent")
    if tags.get("kind") == "study":
        return _told(tags, run)
    inside = re.search(r"/studies/[^/]+/trials/\d+(/seed-\d+)?$", run.path.as_posix())
    if parent is None and inside is None:
        return None
    study = RunFolder(run.path / parent["folder"] if parent else run.path.as_posix().rpartition("/trials/")[0])
    return _told((first(study.journal, "start") or {}).get("tags") or {}, study)


def _told(tags: Mapping[str, Any], study: RunFolder) -> str:
    return known_command(tags.get("command")) or f"the command of the study in '{os.path.normpath(study.path)}'"
