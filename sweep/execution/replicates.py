"""What a trial reports while it trains: the mean over its runs, epoch by epoch."""

from collections.abc import Collection, Sequence
from statistics import fmean

from sweep.config.metrics import best_of


class Means:
    """The mean over the runs of a trial, one for each seed, of their best values so far.

    A step is an epoch of all runs, however many there are and in which order they train: step e is known once each run
    has trained e epochs. A run that ends before the others counts with its best value from then on.

    direction: what is the best. reported: the steps that the study has already.
    """

    def __init__(self, n_runs: int, direction: str, reported: Collection[int] = ()) -> None:
        self._direction = direction
        self._bests: list[list[float]] = [[] for _ in range(n_runs)]  # of each run, by epoch
        self._is_over = [False] * n_runs
        self._reported = set(reported) - {max(reported, default=0)}  # the pruner may not have been asked about the last
        self._next = 1  # all steps before it are reported

    def add(self, place: int, epoch: int, value: float) -> None:
        """The value of a run's next epoch. Epochs before it that it did not have a value at count as no better."""
        bests = self._bests[place]
        if epoch <= len(bests):  # trained again after a crash
            return
        best = bests[-1] if bests else best_of([], self._direction)
        bests += [best] * (epoch - 1 - len(bests))
        bests.append(best_of([best, value], self._direction))

    def extend(self, place: int, epochs: Sequence[int], values: Sequence[float]) -> None:
        """The values that a run recorded in earlier attempts."""
        for epoch, value in zip(epochs, values, strict=True):
            self.add(place, epoch, value)

    def end(self, place: int) -> None:
        """The run has come to its end."""
        self._is_over[place] = True

    @property
    def n_epochs(self) -> int:
        """How many epochs each run has trained, but for those that are over."""
        left = [len(bests) for bests, is_over in zip(self._bests, self._is_over, strict=True) if not is_over]
        return min(left) if left else max(map(len, self._bests))

    def unreported(self) -> list[tuple[int, float]]:
        """The steps that are known and not reported yet, with their values, in order."""
        while self._next in self._reported:
            self._next += 1
        steps = [step for step in range(self._next, self.n_epochs + 1) if step not in self._reported]
        return [(step, self._mean(step)) for step in steps]

    def reported(self, step: int) -> None:
        """The study has the step."""
        self._reported.add(step)

    def _mean(self, step: int) -> float:
        return fmean(bests[min(step, len(bests)) - 1] for bests in self._bests if bests)
