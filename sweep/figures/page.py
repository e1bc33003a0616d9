"""The page itself: one HTML file with everything in it, whose figures are drawn where it is opened."""

import base64
import gzip
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from sweep.figures.figure import Figure


class Table(NamedTuple):
    """Cells are texts. is_wide: has a row of headings, and may scroll sideways; else names and values."""

    rows: Sequence[Sequence[str]]
    head: Sequence[str] = ()


class Section(NamedTuple):
    """note: a sentence on how to read it. grid: whether the figures stand side by side where there is room.

    commands: with what each does.
    """

    title: str
    note: str = ""
    figures: Sequence[Figure] = ()
    grid: bool = False
    commands: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    texts: Sequence[tuple[str, str]] = ()


class Document(NamedTuple):
    """facts: a few numbers to see first, each with what it is."""

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    footer: str


def to_html(document: Document) -> str:
    """Opens without network, and lets nothing be fetched: its security policy forbids every connection.

    plotly.js is in it packed, which makes it 2 MB instead of 5; browsers of 2023 and later unpack it.
    """
    from jinja2 import Environment, StrictUndefined

    folder = files("sweep.figures")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    return template.render(
        document=document,
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=(folder / "page.js").read_text(encoding="utf-8"),
        plotly=_packed_plotly(),
    )


def is_page(file: Path) -> bool:
    """Whether the file is a page that `to_html` made, in this version or an earlier one."""
    with open(file, "rb") as page:
        head = page.read(1000)
    return any(mark in head for mark in (b'name="generator" content="sweep"', b"default-src 'none'; style-src"))


def _packed_plotly() -> str:
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
