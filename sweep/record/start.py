"""The start of a trial's record: who it is, in files and in the journal; and reading it again to resume it."""

import os
import uuid
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from sweep.config import Config, require_run, validate
from sweep.data import Samples
from sweep.data.split import Splits
from sweep.errors import ConfigError
from sweep.record.describe import dataset, group_choices, hyperparameters, run_name
from sweep.record.folder import RunFolder, write_atomic
from sweep.record.journal import Journal, damaged_line, first, status
from sweep.record.provenance import provenance_tags, uncommitted_diff


def write_start(
    journal: Journal,
    run: RunFolder,
    config: Config,
    samples: Samples,
    splits: Splits,
    output_dir: Path,
    store: str | None,
    device: str,
) -> None:
    """Says who the trial is, in files and in the journal. A resumed one keeps its name and its `uid`.

    store: as `recorded_uri` has it. device: the kind that the trial trains on.
    """
    earlier = first(run.journal, "start")
    data = dataset(samples, splits)
    if earlier is not None and earlier["dataset"]["digest"] != data["digest"]:
        raise ConfigError("resume", f"the data have changed since '{run.path}' began; start a new run")
    run.curves.unlink(missing_ok=True)
    if earlier is None:
        if isinstance(config.data.get("path"), str):
            config.data["path"] = os.path.abspath(config.data["path"])  # so that it resumes from any directory
        write_atomic(run.overrides, OmegaConf.to_yaml(config.overrides or []))
        write_atomic(run.config, OmegaConf.to_yaml(OmegaConf.structured(config)))  # from here on it can be resumed
        if diff := uncommitted_diff():
            write_atomic(run.diff, diff)
    journal.event(
        "start",
        uid=uuid.uuid4().hex if earlier is None else earlier["uid"],
        name=run_name(config),
        experiment=config.experiment_name,
        output_dir=os.path.relpath(output_dir, run.path),  # relative, so that the tree may be moved
        store=store,
        params=hyperparameters(config),
        tags={**provenance_tags(config.overrides), **group_choices(config), "device": device},
        dataset=data,
    )


def stored_config(run: RunFolder) -> Config:
    """The config of an earlier trial that did not finish."""
    require_run(run.path)
    if status(run.journal) == "FINISHED":
        raise ConfigError("resume", f"the run in '{run.path}' has finished; there is nothing left to do")
    if run.journal.exists() and (line := damaged_line(run.journal)) is not None:
        raise ConfigError("resume", f"line {line} of '{run.journal}' is damaged; start a new run")
    stored = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(run.config))
    assert isinstance(stored, DictConfig)
    return validate(stored)
