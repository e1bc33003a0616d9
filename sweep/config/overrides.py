"""Overrides and commands as a person would type them: read, and quoted for Hydra, then for the shell.

Every command that is printed or recorded is spelled here, so that it can be pasted into a shell as it stands.
"""

import re
import shlex
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from sweep.config.schema import literal
from sweep.utils.command_line import hydra_arguments
from sweep.utils.errors import ConfigError
from sweep.utils.passwords import without_password


def key_of(override: str) -> str:
    """Return the key or group that an override is about, as in `+KEY=VALUE` or `~KEY`; `@PACKAGE` stays with it."""
    return override.lstrip("+~").partition("=")[0]


def value_of(override: str) -> str:
    """Return the text of an override's value, empty for `~KEY`."""
    return override.partition("=")[2]


def is_hydras(override: str) -> bool:
    """Return True if the override is about one of Hydra's own keys or groups."""
    return key_of(override).startswith(("hydra.", "hydra/"))


def sets(override: str, *keys: str) -> bool:
    """Return True if the override gives one of the keys a value; `~KEY` takes the key away instead."""
    return not override.startswith("~") and key_of(override) in keys


def spelled(value: Any) -> str:
    """A value in Hydra's grammar, which reads it as the same value. What `${...}` in a text means is left open."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{spelled(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(spelled, value)) + "]"
    return _quoted(value) if isinstance(value, str) else str(value)


@lru_cache(maxsize=1024)
def _quoted(text: str) -> str:
    """The text itself where Hydra reads it as that text, as it does not read `1e3`, `null` or `a,b`."""
    if re.fullmatch(r"[A-Za-z0-9_./:@+-]+", text):
        try:
            if OverridesParser.create().parse_override(f"key={text}").value() == text:
                return text
        except HydraException:
            pass
    return QuotedString(text, Quote.double).with_quotes()


def option(group: str, name: str) -> str:
    """The override that chooses an option of a group."""
    return f"{group}={spelled(name)}"


def setting(key: str, value: Any) -> str:
    """The override that sets a key to a value; a text in it is itself, whatever `${...}` it holds."""
    return f"{key}={spelled(literal(value))}"


def word(text: object) -> str:
    """One word of a command for a shell, without a password."""
    return shlex.quote(without_password(str(text)))


def program(*words: object) -> str:
    """A command for a shell, without passwords."""
    return " ".join(map(word, words))


def command(module: str, *arguments: object) -> str:
    """`python -m MODULE ARGUMENTS` for a shell, without passwords."""
    return program("python", "-m", module, *arguments)


def known_command(text: object) -> str | None:
    """Return the text if it is a command of ours with its overrides, spelled as `command` does, else None.

    A record may be somebody else's: what it calls a command might have a shell do anything.
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
    """The command with an environment variable of its own, for a shell, without a password."""
    return f"{name}={word(value)} {command}"
