"""Train a study's best configuration again: `python -m sweep.run from_study=NAME`. This needs no Optuna."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sweep.config.composition import compose, given_overrides
from sweep.config.outputs import BEST, require_study
from sweep.config.overrides import key_of, sets
from sweep.config.stored_overrides import stored_overrides
from sweep.utils.checked_file import load_checked
from sweep.utils.errors import Damaged
from sweep.utils.paths import absolute, refuse_links_in

log = logging.getLogger("sweep")


def stored_best(best: Path, key: str) -> dict[str, Any]:
    """Read a study's best.yaml.

    Args:
        best: the path of best.yaml.
        key: the config key that an error names.

    Returns:
        The content of the file: `trial` is the number of the best trial, `values` and `overrides` are its own.

    Raises:
        Damaged: the file is gone, cannot be read, or lists no overrides.
    """
    remedy = "run the study's command again, which writes it anew"
    if not best.exists():
        raise Damaged(key, best, "it is gone", remedy)
    found = load_checked(best, key, remedy)
    overrides = found.get("overrides")
    if not isinstance(overrides, list) or not all(isinstance(o, str) for o in overrides):
        raise Damaged(key, best, "it lists no overrides", remedy)
    return {str(name): value for name, value in found.items()}


def best_config(output_dir: str, name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose the best configuration of a study, with the overrides of the command line on top.

    Args:
        output_dir: the folder whose `studies` folder holds the study.
        name: the study's name.
        overrides: the command line's own overrides. They win over those that the study stored.

    Raises:
        ConfigError: the study does not exist or has no complete trial, or its configuration sets something that only
            the user's own command may set (`stored_overrides`).
        Damaged: the study's best.yaml cannot be read.
    """
    require_study(absolute(output_dir), name)
    folder = absolute(output_dir) / "studies" / name
    refuse_links_in(folder, "from_study")
    on_top = [o for o in overrides if not sets(o, "from_study")]
    changed = set(map(key_of, on_top))
    stored = stored_best(folder / BEST, "from_study")["overrides"]
    recorded = [o for o in stored if key_of(o) not in changed]
    best = stored_overrides(recorded, on_top, "from_study")
    for override in recorded:
        if key_of(override).startswith("tracking.") and override not in best:
            log.warning("warning: %s, which the study ran with, holds only if you give it too", override)
    return compose([*best, *on_top])


def best_choices(output_dir: str, name: str, job: Any) -> dict[str, str]:
    """Return the chosen option of each group in `best_config`, without logging anything.

    Args:
        output_dir: as for `best_config`.
        name: as for `best_config`.
        job: Hydra's own node, which holds the overrides of the command line.

    Raises:
        ConfigError: as for `best_config`.
    """
    earlier = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # the warnings are shown later, where the config is used
    try:
        return dict(best_config(output_dir, name, given_overrides(job)).choices)
    finally:
        logging.disable(earlier)
