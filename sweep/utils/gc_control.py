"""Python's garbage collector, kept from going through what stays: loaded modules, and what torch has traced.

Once torch is loaded that takes up to 0.3 s each time, which adds up to a fifth of a short command.
"""

import gc

_is_paused = False


def pause() -> None:
    """Until `resume`. For a command while it loads; a program that uses sweep keeps its collector as it is."""
    global _is_paused
    _is_paused = True
    gc.disable()


def resume() -> None:
    """Collects from now on, if it was paused, but not what there is."""
    global _is_paused
    if _is_paused:
        _is_paused = False
        set_aside()
        gc.enable()


def set_aside() -> None:
    """Leaves all that there is out of further collections."""
    gc.freeze()
