"""Write book.txt: the description of Python's language that comes with it."""

from pathlib import Path
from pydoc_data.topics import topics

Path("book.txt").write_text("\n".join(topics[name] for name in sorted(topics)), encoding="utf-8")
