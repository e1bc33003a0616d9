"""Shows how training progresses: a live line in a terminal, a few log lines elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

log = logging.getLogger("sweep")

Show = Callable[[int, Mapping[str, float]], None]  # (epoch, metrics)
_SHORT = {"train/loss": "train", "val/loss": "val", "lr": "lr"}
_MOST_SHOWN = 3  # metrics, if a training function reports none of the above
_LOG_LINES = 10  # a run, approximately
_REFRESH_S = 0.5  # drawing takes 3 ms, and an epoch may take only 10 ms


@contextmanager
def progress(epochs: int, done: int, live: bool) -> Iterator[Show]:
    """Show progress inside the `with` block.

    Args:
        epochs: the total number of epochs; 0 if it is not known.
        done: the number of epochs that a checkpoint already contains.
        live: True for a live line in a terminal, False for log lines.

    Yields:
        A function to call with the epoch and its metrics after each epoch.
    """
    if live:
        with _live(epochs, done) as show:
            yield show
    else:
        every, n_shown = max(1, epochs // _LOG_LINES), 0

        def show_line(epoch: int, metrics: Mapping[str, float]) -> None:
            nonlocal n_shown
            if epochs:
                if epoch % every == 0 or epoch == epochs:
                    log.info("epoch %d/%d  %s", epoch, epochs, _text(metrics))
                return
            n_shown += 1
            if n_shown & (n_shown - 1) == 0:  # the 1st, 2nd, 4th, 8th report and so on
                log.info("epoch %d  %s", epoch, _text(metrics))

        yield show_line


@contextmanager
def _live(epochs: int, done: int) -> Iterator[Show]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from sweep.utils.console import Console

    columns = (
        TextColumn("epoch"),
        MofNCompleteColumn(),
        BarColumn(bar_width=24),
        TextColumn("{task.description}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", total=epochs or None, completed=done)
        next_refresh = 0.0

        def show(epoch: int, metrics: Mapping[str, float]) -> None:
            nonlocal next_refresh
            now = time.monotonic()
            if now >= next_refresh or epoch == epochs:
                bar.update(task, completed=epoch, description=_text(metrics), refresh=True)
                next_refresh = now + _REFRESH_S

        yield show


def _text(metrics: Mapping[str, float]) -> str:
    names = [name for name in _SHORT if name in metrics] or [*metrics][:_MOST_SHOWN]
    return "  ".join(f"{_SHORT.get(name, name)} {metrics[name]:{'.3g' if name == 'lr' else '.4g'}}" for name in names)
