"""What the callbacks need to know of torch's process group, if several processes train a trial together."""


def rank() -> int:
    """Return the rank of this process; 0 without a process group."""
    from torch import distributed

    return distributed.get_rank() if _has_group() else 0


def wait_for_all() -> None:
    """Wait until all ranks call this."""
    from torch import distributed

    if _has_group():
        distributed.barrier()


def _has_group() -> bool:
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()
