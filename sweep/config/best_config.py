"""Training a study's best configuration again: `python -m sweep.run from_study=NAME`. Needs no Optuna."""

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
    """Return what a study's best.yaml says: the number of the `trial`, its `values` and `overrides`. Raises Damaged."""
    remedy = "run the study's command again, which writes it anew"
    if not best.exists():
        raise Damaged(key, best, "it is gone", remedy)
    found = load_checked(best, key, remedy)
    overrides = found.get("overrides")
    if not isinstance(overrides, list) or not all(isinstance(o, str) for o in overrides):
        raise Damaged(key, best, "it lists no overrides", remedy)
    return {str(name): value for name, value in found.items()}


def best_config(output_dir: str, name: str, overrides: Sequence[str]) -> DictConfig:
    """The best configuration of study `name` below `output_dir`, with `overrides` of the command line on top.

    Raises ConfigError for a study that is not there or has no complete trial, or whose configuration asks for what only
    the user's own command may (`stored_overrides`).
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
    """Return the option of each group that `best_config` has, without a word. job: Hydra's node. Raises ConfigError."""
    earlier = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # what there is to say is said where the config is used
    try:
        return dict(best_config(output_dir, name, given_overrides(job)).choices)
    finally:
        logging.disable(earlier)
