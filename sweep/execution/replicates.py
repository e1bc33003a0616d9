"""The values that a trial with several seeds or folds reports while it trains: the mean over its runs, by epoch."""

from collections.abc import Collection, Sequence
from statistics import fmean

from sweep.config.metrics import best_of


class Means:
    """The mean of the best values so far, over the runs of a trial. There is one run for each seed and fold.

    With b_r(e) the best value of run r in its epochs 1 to e, step e has the value mean over r of b_r(e). It is known
    once every run has trained e epochs. A run that ends earlier keeps its last best value from then on. So the steps
    depend neither on the number of runs nor on the order in which they train.
    """

    def __init__(self, n_runs: int, direction: str, reported: Collection[int] = ()) -> None:
        """Start without values.

        Args:
            n_runs: the number of runs.
            direction: minimize or maximize.
            reported: the steps that the study's storage has already.
        """
        self._direction = direction
        self._bests: list[list[float]] = [[] for _ in range(n_runs)]  # the best value so far, by run and epoch
        self._is_over = [False] * n_runs
        # The worker may have died before it asked the pruner about the last step, so that step is reported again.
        self._reported = set(reported) - {max(reported, default=0)}
        self._next = 1  # all steps before it are reported

    def add(self, place: int, epoch: int, value: float) -> None:
        """Add the value of an epoch of a run. Skipped epochs count as no better than those before them."""
        bests = self._bests[place]
        if epoch <= len(bests):  # trained again after a crash
            return
        best = bests[-1] if bests else best_of([], self._direction)
        bests += [best] * (epoch - 1 - len(bests))
        bests.append(best_of([best, value], self._direction))

    def extend(self, place: int, epochs: Sequence[int], values: Sequence[float]) -> None:
        """Add the values that a run recorded before it was resumed."""
        for epoch, value in zip(epochs, values, strict=True):
            self.add(place, epoch, value)

    def end(self, place: int) -> None:
        """Note that the run is over, so that the others no longer wait for it."""
        self._is_over[place] = True

    @property
    def n_epochs(self) -> int:
        """The number of epochs that every unfinished run has trained; if all are over, the largest number of any."""
        left = [len(bests) for bests, is_over in zip(self._bests, self._is_over, strict=True) if not is_over]
        return min(left) if left else max(map(len, self._bests))

    def unreported(self) -> list[tuple[int, float]]:
        """Return the steps that are known but not reported yet, in order, each with its value."""
        while self._next in self._reported:
            self._next += 1
        steps = [step for step in range(self._next, self.n_epochs + 1) if step not in self._reported]
        return [(step, self._mean(step)) for step in steps]

    def reported(self, step: int) -> None:
        """Note that the study's storage has the step."""
        self._reported.add(step)

    def _mean(self, step: int) -> float:
        return fmean(bests[min(step, len(bests)) - 1] for bests in self._bests if bests)
