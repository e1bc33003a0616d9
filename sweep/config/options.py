"""The folder of the options that come with sweep, and their names."""

from pathlib import Path

# A source checkout has conf/ beside the package, an installed wheel inside it.
_PACKAGE = Path(__file__).parent.parent
_INSIDE = _PACKAGE / "conf"
CONF_DIR = _INSIDE if _INSIDE.is_dir() else _PACKAGE.parent / "conf"


def is_group(name: str) -> bool:
    """Return whether sweep has a config group of that name, such as `task/loss`."""
    return bool(name) and (CONF_DIR / name).is_dir()


def option_names(group: str) -> list[str]:
    """Return the names of sweep's own options of a group, sorted; an empty list if it is not a group."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml")) if group else []
