"""Keeps Python's garbage collector from scanning permanent objects: loaded modules, and what torch has traced.

Once torch is loaded, each scan takes up to 0.3 s, which adds up to a fifth of the time of a short command.
"""

import gc

_is_paused = False


def pause() -> None:
    """Stop collecting until `resume`.

    Only sweep's own commands call this, while they load. A program that imports sweep keeps its collector as it is.
    """
    global _is_paused
    _is_paused = True
    gc.disable()


def resume() -> None:
    """If collecting was paused, start it again, but exclude all objects that exist now."""
    global _is_paused
    if _is_paused:
        _is_paused = False
        set_aside()
        gc.enable()


def set_aside() -> None:
    """Exclude all objects that exist now from future collections."""
    gc.freeze()
