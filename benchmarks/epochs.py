"""Time epochs of a real trial and of a hand-written loop, in turn, within one process."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from sweep import compose, run_trial


class Pair(NamedTuple):
    """An epoch of ours and the hand-written one after it: seconds, and those of them on a CPU in this process."""

    ours_s: float
    theirs_s: float
    ours_cpu_s: float
    theirs_cpu_s: float


def paired_epochs(theirs: Callable[[], object], overrides: Sequence[str], epochs: int) -> list[Pair]:
    """Return the times of the epochs, without the first tenth.

    Args:
        theirs: one epoch of the hand-written loop.
        overrides: of the trial.
        epochs: how many.
    """
    pairs: list[Pair] = []
    last, last_cpu = time.perf_counter(), time.process_time()

    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        nonlocal last, last_cpu
        now, now_cpu = time.perf_counter(), time.process_time()
        theirs()
        end, end_cpu = time.perf_counter(), time.process_time()
        pairs.append(Pair(now - last, end - now, now_cpu - last_cpu, end_cpu - now_cpu))
        last, last_cpu = end, end_cpu

    with tempfile.TemporaryDirectory() as output_dir:
        cfg = compose([*overrides, f"output_dir={output_dir}", f"trainer.epochs={epochs}"])
        run_trial(cfg, report, live=True)
    return pairs[max(1, epochs // 10) :]
