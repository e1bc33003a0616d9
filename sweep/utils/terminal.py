"""Prints to a terminal. Control characters in texts from elsewhere are escaped, and passwords are hidden."""

import logging
import re
import sys
import traceback
from typing import IO, Any

from sweep.utils.passwords import without_passwords

# Control characters except tab and newline, and characters that change the direction of text or begin a new line.
_ACTED_ON = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def escaped(text: str) -> str:
    """Return the text with a backslash escape in place of each character that a terminal would act on."""
    return _ACTED_ON.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escaped_line(text: str) -> str:
    """Return the text as `escaped` does, with newlines and tabs escaped too."""
    return escaped(text).replace("\n", r"\n").replace("\t", r"\t")


def safe(text: str) -> str:
    """Return a text that is safe to print or log: escaped, and without passwords."""
    return escaped(without_passwords(text))


def say(text: object = "", *, err: bool = False, flush: bool = False) -> None:
    """Print a text, made safe by `safe`, on standard output or, with `err`, on standard error."""
    print(safe(str(text)), file=sys.stderr if err else sys.stdout, flush=flush)


def complain(text: object) -> None:
    """Print a text on standard error as one line, even if it contains newlines."""
    print(escaped_line(safe(str(text))), file=sys.stderr)


class Shown:
    """A stream that escapes everything on which a terminal would act."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(escaped(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class SafeRecord(logging.LogRecord):
    """A log record whose message and traceback are safe to show on a terminal."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.exc_info, tuple) and self.exc_info[0] is not None:
            self.exc_text = safe("".join(traceback.format_exception(*self.exc_info)).rstrip("\n"))

    def getMessage(self) -> str:  # overrides logging's
        return safe(super().getMessage())
