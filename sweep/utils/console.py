"""Rich's console for tables and live lines. Control characters in texts from elsewhere are escaped."""

import sys
from collections.abc import Iterator
from typing import Any

from rich import console
from rich.segment import Segment
from rich.text import Text

from sweep.utils.terminal import escaped, safe


class Console(console.Console):
    """A console on standard output or standard error. It ignores markup, which could contain links."""

    def __init__(self, stderr: bool = False, **options: Any) -> None:
        stream = sys.stderr if stderr else sys.stdout
        super().__init__(**{"file": stream, "markup": False, "emoji": False, "highlight": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(safe(text), **options)

    def render(self, renderable: Any, options: console.ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escaped(segment.text), segment.style)
