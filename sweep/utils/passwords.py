"""Hides passwords in URIs, so that none is printed, stored in a file or sent to MLflow."""

import re
from collections.abc import Sequence
from urllib.parse import unquote_plus

_USER = re.compile(r"(://[^:/@?#\s]*):.*@", re.DOTALL)  # up to the last @, since a password may contain an unquoted one
_PAIR = re.compile(r"([?&;]([^=?&;\s]*)=)[^&]*?(?=&|[\"'\])}]*$)", re.DOTALL)
_SECRET = re.compile(r"passw|pwd|token|secret|odbc_connect", re.IGNORECASE)
_WORD = re.compile(r"\S*://\S*")
_WITH_URI = ("tracking", "hydra.")  # keys whose value may be the URI of a store or a storage


def without_password(text: str) -> str:
    """Return a URI, or an override that contains one, with *** in place of each password."""
    return _PAIR.sub(_hidden, _USER.sub(r"\1:***@", text))


def without_passwords(text: str) -> str:
    """Return a text with *** in place of each password in the URIs among its words."""
    return _WORD.sub(lambda word: without_password(word[0]), text) if "://" in text else text


def overrides_without_passwords(overrides: Sequence[str]) -> list[str]:
    """Return overrides without the passwords of stores and storages. Overrides of other keys are unchanged."""
    return [without_password(o) if o.lstrip("+~").startswith(_WITH_URI) else o for o in overrides]


def is_hidden(uri: str) -> bool:
    """Return whether a URI has *** in place of its password, as in printed and stored URIs."""
    return re.search(r":\*\*\*@|=\*\*\*(&|$)", uri) is not None


def _hidden(pair: re.Match[str]) -> str:
    return f"{pair[1]}***" if _SECRET.search(unquote_plus(pair[2])) else pair[0]
