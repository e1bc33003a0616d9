"""Short pieces of HTML, as a notebook shows them for an object. All texts are escaped."""

from collections.abc import Sequence
from html import escape

from sweep.utils.terminal import escaped


def paragraph(text: object, tag: str = "div") -> str:
    """Return a text as an element of HTML."""
    return f"<{tag}>{_shown(text)}</{tag}>"


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Return a table of HTML, with a row of headings."""
    above = "".join(f"<th>{_shown(cell)}</th>" for cell in head)
    below = "".join(f"<tr>{''.join(f'<td>{_shown(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{above}</tr></thead><tbody>{below}</tbody></table>"


def _shown(text: object) -> str:
    return escape(escaped(str(text)))
