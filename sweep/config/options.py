"""The folder of the options that come with sweep, and their names."""

from pathlib import Path
from typing import Any

from sweep.utils.files import from_yaml

SETTING_GROUPS = ("sampler", "pruner")  # of hydra/sweeper

# A source checkout has conf/ beside the package, an installed wheel inside it.
_PACKAGE = Path(__file__).parent.parent
_INSIDE = _PACKAGE / "conf"
CONF_DIR = _INSIDE if _INSIDE.is_dir() else _PACKAGE.parent / "conf"


def is_setting(key: str) -> bool:
    """Return whether `hydra.sweeper` has that key, such as `n_trials` or `tracking.uri`, in any kind of study."""
    first, *others = key.split(".")
    if first in SETTING_GROUPS:
        return True
    folders = (CONF_DIR, _PACKAGE / "study" / "search_path")
    files = [path for folder in folders for path in (folder / "hydra" / "sweeper").glob("*.yaml")]
    return any(_has(from_yaml(path.read_text(encoding="utf-8")), first, *others) for path in files)


def _has(node: Any, *keys: str) -> bool:
    """Return whether each key is in the dict that the one before it leads to."""
    return not keys or (isinstance(node, dict) and keys[0] in node and _has(node[keys[0]], *keys[1:]))


def is_group(name: str) -> bool:
    """Return whether sweep has a config group of that name, such as `task/loss`."""
    return bool(name) and (CONF_DIR / name).is_dir()


def option_names(group: str) -> list[str]:
    """Return the names of sweep's own options of a group, sorted; an empty list if it is not a group."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml")) if group else []
