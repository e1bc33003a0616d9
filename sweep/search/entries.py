"""Read the nodes `search`, `where` and `when` of a config: their entries, by full key."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from sweep.config.hydra_errors import config_error
from sweep.utils.errors import ConfigError, one_line


def node_of(config: DictConfig, name: str) -> dict[str, Any]:
    """Return one of the nodes `search`, `where` and `when`; empty if another application has something else there.

    Only `search` is resolved: conditions may refer to values that are searched.
    """
    node = config.get(name)
    plain = OmegaConf.to_container(node, resolve=name == "search") if OmegaConf.is_dict(node) else {}
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return entries by full key. `+search.gan.lr=...` on a command line makes a node of its own for each dot."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        is_node = isinstance(value, dict | DictConfig)
        found |= flat(value, f"{prefix}{key}.") if is_node else {f"{prefix}{key}": value}
    return found


def entries_of(config: DictConfig, name: str) -> dict[str, Any]:
    """Return the node `search` or `when`, by full key or group. Raise ConfigError if it cannot be read."""
    try:
        return flat(node_of(config, name))
    except Exception as error:
        raise config_error(error, ()) or ConfigError(name, one_line(error)) from error
