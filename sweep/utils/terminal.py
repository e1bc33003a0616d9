"""What a terminal is given: texts of others are shown and not obeyed, and passwords are not shown."""

import logging
import re
import sys
import traceback
from typing import IO, Any

from sweep.utils.passwords import without_passwords

# Control characters but for the tab and the end of a line, and those that change the direction or the line of a text.
_ACTED_ON = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def escaped(text: str) -> str:
    """Return the text with a backslash escape in place of each character that a terminal would act on."""
    return _ACTED_ON.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escaped_line(text: str) -> str:
    """As `escaped`, and with ends of lines and tabs escaped too."""
    return escaped(text).replace("\n", r"\n").replace("\t", r"\t")


def safe(text: str) -> str:
    """Return a text as it may be printed or logged."""
    return escaped(without_passwords(text))


def say(text: object = "", *, err: bool = False, flush: bool = False) -> None:
    """Print a text as `safe` returns it, on standard output or, with `err`, on standard error."""
    print(safe(str(text)), file=sys.stderr if err else sys.stdout, flush=flush)


def complain(text: object) -> None:
    """Print a text on standard error as one line, whatever it quotes."""
    print(escaped_line(safe(str(text))), file=sys.stderr)


class Shown:
    """A stream that shows a terminal what is written to it, and has it obey nothing."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(escaped(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class SafeRecord(logging.LogRecord):
    """A line of a log, on a terminal or in a file that is read in one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.exc_info, tuple) and self.exc_info[0] is not None:
            self.exc_text = safe("".join(traceback.format_exception(*self.exc_info)).rstrip("\n"))

    def getMessage(self) -> str:  # overrides logging's
        return safe(super().getMessage())
