"""Say what is wrong with a `${...}` that OmegaConf cannot resolve."""

import re

from sweep.utils.errors import one_line

_NO_VARIABLE = re.compile(r"Environment variable '([^']+)' not found")
_NO_KEY = re.compile(r"Interpolation key '([^']+)' not found")
_NO_RESOLVER = re.compile(r"Unsupported interpolation type (\S+)")
_EXPECTED = re.compile(r" expecting \{.*")  # a list of the grammar's tokens
_PREFIX = re.compile(r"^\w+ raised while resolving interpolation: ")


def resolution_problem(error: Exception) -> str:
    """Return the message of an error of OmegaConf's, in one line, with what to do if an interpolation is wrong."""
    message = one_line(error)
    if (found := _NO_VARIABLE.search(message)) is not None:
        name = found[1]
        return f"needs the environment variable {name}, which is not set; set it, or write ${{oc.env:{name},DEFAULT}}"
    if (found := _NO_KEY.search(message)) is not None:
        return (
            f"refers to '{found[1]}', which is not a key of the config; name one in full, such as ${{trainer.epochs}}"
        )
    if (found := _NO_RESOLVER.search(message)) is not None:
        return f"has no resolver '{found[1]}'; write \\${{ if it is a text"
    return _EXPECTED.sub("", _PREFIX.sub("", message))
