"""Turns a trial's progress into journal rows."""

from collections.abc import Callable, Mapping, Sequence

from sweep.tracking.journal import Journal
from sweep.tracking.progress import Show

Report = Callable[[int, Mapping[str, float]], None]  # (epoch, its metrics); a study's raises Pruned


class Recorder:
    """The training loop's listener: epoch metrics at step = epoch, step curves thinned to at most `step_points`."""

    def __init__(self, journal: Journal, total_steps: int, step_points: int, report: Report | None) -> None:
        self._journal = journal
        self._stride = max(1, -(-total_steps // step_points)) if step_points else 0
        self._report = report
        self.show: Show = lambda epoch, metrics: None

    def steps(self, first: int, losses: Sequence[float], lrs: Sequence[float]) -> None:
        """Losses and learning rates of consecutive updates, the first of them number `first`."""
        if not self._stride:
            return
        points = slice(-(first - 1) % self._stride, len(losses), self._stride)  # the first update is always a point
        steps = range(first, first + len(losses))[points]
        self._journal.metrics(steps, {"step/loss": losses[points], "step/lr": lrs[points]})

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Writes the epoch, shows it, and then lets the study have its say."""
        self._journal.metrics([epoch], {name: [value] for name, value in metrics.items()})
        self.show(epoch, metrics)
        if self._report is not None:
            self._report(epoch, metrics)
