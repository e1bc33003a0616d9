"""Show an object in the cell of a notebook, and replace it there. Needs IPython only where a notebook has loaded it."""

import importlib
import sys
from contextlib import suppress
from typing import Any


def is_notebook() -> bool:
    """Return True if this program is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class Cell:
    """A place in the output of the current cell of a notebook. Nothing that fails here is an error."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, shown: Any) -> None:
        """Show an object with a method `_repr_html_`, in place of the one before."""
        with suppress(Exception):  # a front end that went away must not end a study
            if self._handle is not None:
                self._handle.update(shown)
                return
            display = importlib.import_module("IPython.display")
            self._handle = display.display(shown, display_id=True)
