"""Read overrides, and write overrides and commands with the quoting that Hydra and the shell need.

Every command that is printed or recorded is written here, so that it can be pasted into a shell as it is.
"""

import re
import shlex
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from sweep.config.schema import literal
from sweep.utils.command_line import hydra_arguments
from sweep.utils.errors import ConfigError
from sweep.utils.passwords import without_password


def key_of(override: str) -> str:
    """Return the key or group of an override such as `+KEY=VALUE` or `~KEY`. A group keeps its `@PACKAGE`."""
    return override.lstrip("+~").partition("=")[0]


def value_of(override: str) -> str:
    """Return the text of an override's value; it is empty for `~KEY`."""
    return override.partition("=")[2]


def hydras_own(config: DictConfig) -> list[str]:
    """Return the overrides of Hydra's own keys that composed a config, as written: some refer to the job to come."""
    overrides: Any = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    return overrides


def is_hydras(override: str) -> bool:
    """Return True if the override sets or deletes one of Hydra's own keys or groups."""
    return key_of(override).startswith(("hydra.", "hydra/"))


def sets(override: str, *keys: str) -> bool:
    """Return True if the override gives one of the keys a value. `~KEY` deletes the key, so it does not count."""
    return not override.startswith("~") and key_of(override) in keys


def spelled(value: Any) -> str:
    """Write a value in Hydra's grammar, so that Hydra reads it back as the same value.

    A `${...}` in a text is not escaped: OmegaConf resolves it as an interpolation (see `setting`).
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{spelled(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(spelled, value)) + "]"
    return _quoted(value) if isinstance(value, str) else str(value)


@lru_cache(maxsize=1024)
def _quoted(text: str) -> str:
    """Return the text, in quotes unless Hydra reads it as the same text without: `1e3`, `null` or `a,b` need them."""
    if re.fullmatch(r"[A-Za-z0-9_./:@+-]+", text):
        try:
            if OverridesParser.create().parse_override(f"key={text}").value() == text:
                return text
        except HydraException:
            pass
    return QuotedString(text, Quote.double).with_quotes()


def option(group: str, name: str) -> str:
    """Return the override that chooses an option of a group."""
    return f"{group}={spelled(name)}"


def setting(key: str, value: Any) -> str:
    """Return the override that sets a key to a value. Any `${...}` in a text is escaped, so it stays as it is."""
    return f"{key}={spelled(literal(value))}"


def word(text: object) -> str:
    """Quote one word of a command for a shell, with the password in a URL removed."""
    return shlex.quote(without_password(str(text)))


def program(*words: object) -> str:
    """Join words to a command for a shell, without passwords."""
    return " ".join(map(word, words))


def command(module: str, *arguments: object) -> str:
    """Return `python -m MODULE ARGUMENTS` for a shell, without passwords."""
    return program("python", "-m", module, *arguments)


def known_command(text: object) -> str | None:
    """Return the text if it is one of our commands with overrides, written as `command` writes it, else None.

    Check a recorded command with it before you print it: the record may come from somebody else, and the text might
    make a shell do anything.
    """
    try:
        words = shlex.split(str(text))
        if words[:2] != ["python", "-m"] or words[2:3] not in (["sweep.run"], ["sweep.compare"]):
            return None
        OverridesParser.create().parse_overrides(hydra_arguments(words[3:]).overrides)
    except (ValueError, HydraException, ConfigError):
        return None
    return str(text) if command(*words[2:]) == text else None


def with_variable(name: str, value: str, command: str) -> str:
    """Put an environment variable before a command for a shell, with the password in a URL removed."""
    return f"{name}={word(value)} {command}"
