"""What sweep reads in the texts of Hydra's and OmegaConf's errors, which have no types or fields that say as much.

All patterns are here. tests/config/test_hydra_texts.py provokes the errors of composing and resolving, and fails if a
new version words one differently; the tests of the commands provoke the others. Where an error has a type, a `full_key`
or a field, sweep.config.hydra_errors uses that instead.
"""

import re
from typing import NamedTuple

from sweep.utils.errors import one_line

_LONGEST = 2000  # characters of a message that are read

# Errors of composing.
UNAVAILABLE = re.compile(r"provider=hydra\.searchpath.* is not available")  # of a warning
IN_A_FILE = re.compile(r"In '([^']+)': \w+ raised while composing config:")
TWO_OPTIONS = re.compile(r"Multiple values for ([^\s.]+)\..* Conflicting choices: '(.+)' from '(.+)' and '")
NO_NAME = re.compile(r"Config group override must be")
NO_PRIMARY = re.compile(r"primary config")
NO_DELETION = re.compile(r"does not support deletion$")
AMBIGUOUS = re.compile(r"Ambiguous value")
FORCED_GROUP = re.compile(r"force-add of config groups")
NO_SWEEP_TYPE = re.compile(r"does not support sweep type")
NO_CONFIG_DIR = re.compile(r"Additional config directory")
NO_CONFIG_PATH = re.compile(r"Primary config")

# Errors of the grammar of overrides.
SYNTAX = re.compile(
    r"(?:no viable alternative at|mismatched|extraneous|missing \S+ at)(?: input)? ('.*?')(?: expecting .*)?"
)
EVALUATION = re.compile(r"\w+ while evaluating '.*?': (.*)")
NO_VALUE = re.compile(r"missing EQUAL")
LEXER = re.compile(r"Lexer")

# Errors of interpolations.
NO_VARIABLE = re.compile(r"Environment variable '([^']+)' not found")
NO_KEY = re.compile(r"Interpolation key '([^']+)' not found")
NO_RESOLVER = re.compile(r"Unsupported interpolation type (\S+)")
TOKENS = re.compile(r" expecting \{.*")  # a list of the grammar's tokens
RESOLVING = re.compile(r"^\w+ raised while resolving interpolation: ")

# The key that a message is about: what OmegaConf appends, else the first that is quoted.
KEYS = (
    re.compile(r"full_key: (\S+)"),
    re.compile(r"^(?:Invalid )?(hydra\.\w+) "),
    re.compile(r"^Invalid ([\w.]+) '"),
    re.compile(r"'\+*([\w./@]+)(?:=[^']*)?'"),
)


def key_in(message: str) -> str | None:
    """Return the config key that a message is about; None if it names none."""
    found = next(filter(None, (pattern.search(message) for pattern in KEYS)), None)
    return found[1] if found else None


def plain_line(text: object) -> str:
    """Return the message of an error in one line, long enough for every pattern."""
    return one_line(text if isinstance(text, BaseException) else ValueError(text), _LONGEST)


class TwoOptions(NamedTuple):
    """A second option of a group: what `origin` chose, "command line" or a file."""

    group: str
    option: str
    origin: str


def two_options(error: BaseException) -> TwoOptions | None:
    """Return the option that would be the second one of its group, if that is the error."""
    found = TWO_OPTIONS.match(plain_line(error))
    return None if found is None else TwoOptions(*found.groups())


def resolution_problem(error: Exception) -> str:
    """Return the message of an error of OmegaConf's, in one line, with what to do if an interpolation is wrong."""
    message = one_line(error)
    if (found := NO_VARIABLE.search(message)) is not None:
        name = found[1]
        return f"needs the environment variable {name}, which is not set; set it, or write ${{oc.env:{name},DEFAULT}}"
    if (found := NO_KEY.search(message)) is not None:
        return (
            f"refers to '{found[1]}', which is not a key of the config; name one in full, such as ${{trainer.epochs}}"
        )
    if (found := NO_RESOLVER.search(message)) is not None:
        return f"has no resolver '{found[1]}'; write \\${{ if it is a text"
    return TOKENS.sub("", RESOLVING.sub("", message))
