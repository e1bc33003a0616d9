"""Training a study's best configuration again: `python -m sweep.run from_study=NAME`. Needs no Optuna."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from sweep.composition import compose
from sweep.config import require_study
from sweep.record.folder import StudyFolder, read_yaml


def best_config(output_dir: str, name: str, overrides: Sequence[str]) -> DictConfig:
    """The best configuration of study `name` below `output_dir`, with `overrides` of the command line on top.

    Raises ConfigError for a study that is not there or has no complete trial.
    """
    require_study(Path(output_dir), name)
    folder = StudyFolder(Path(output_dir) / "studies" / name)
    on_top = [o for o in overrides if not o.startswith("from_study=")]
    changed = {o.lstrip("+~").partition("=")[0] for o in on_top}
    best = [str(o) for o in read_yaml(folder.best)["overrides"]]
    return compose([*(o for o in best if o.lstrip("+~").partition("=")[0] not in changed), *on_top])
