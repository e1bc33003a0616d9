"""What every command needs of the shell that it was started from."""

import os
from collections.abc import Sequence

from sweep.errors import ConfigError


def check_command_line(arguments: Sequence[str]) -> None:
    """Raise ConfigError for arguments that are no text, or if the current folder is gone."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:  # Python carries bytes that are no UTF-8 as lone surrogates
            shown = argument.encode(errors="backslashreplace").decode()
            raise ConfigError("command line", f"'{shown}' is not in UTF-8; rename it, or write it in UTF-8") from None
    try:
        os.getcwd()
    except OSError:
        raise ConfigError("output_dir", "the current folder does not exist any more; change to another one") from None
