"""Composing a config, and saying what is wrong with one in a single line."""

import re
from collections.abc import Sequence

import hydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.config import CONF_DIR, register, with_choices
from sweep.errors import ConfigError


def compose(overrides: Sequence[str] = (), config_dir: str | None = None) -> DictConfig:
    """The config that `python -m sweep.run OVERRIDES` would use.

    `config_dir` is a folder with options of your own, like Hydra's --config-dir. Hydra's global state is as before
    afterwards. Raises ConfigError.
    """
    register()
    searchpath = [] if config_dir is None else [f"hydra.searchpath=[file://{config_dir}]"]
    try:
        with hydra.initialize_config_dir(str(CONF_DIR), job_name="sweep"):
            cfg = hydra.compose("config", overrides=[*searchpath, *overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise config_error(error) from error
    choices = dict(cfg.hydra.runtime.choices)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    OmegaConf.set_struct(cfg, True)
    return with_choices(cfg, choices)


def config_error(error: Exception) -> ConfigError:
    """Hydra's or OmegaConf's error, which may run over many lines and causes, as one line with its config key."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        choices = ", ".join(error.options or ()) or "none there"
        return ConfigError(group or "config", f"no option '{option}'; choose one of: {choices}")
    if isinstance(error, OverrideParseException):
        return ConfigError(
            error.override.partition("=")[0] or error.override, f"cannot read '{error.override}'; {_line(error)}"
        )
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = getattr(cause, "full_key", None) or _quoted(error) or "config"
    problem = _line(cause)
    if "not in" in problem:
        problem += f" (to add a key, write +{key}=...)"
    return ConfigError(str(key), problem)


def _line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def _quoted(error: Exception) -> str | None:
    found = re.search(r"'([\w./@]+)'", str(error))
    return found.group(1) if found else None
