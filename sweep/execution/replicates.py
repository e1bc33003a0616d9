"""The values that a trial with several seeds or folds reports while it trains: the mean over its runs, by epoch."""

from bisect import bisect_right
from collections.abc import Collection, Sequence
from statistics import fmean

from sweep.config.metrics import best_of


class Means:
    """The mean of the best values so far, over the runs of a trial. There is one run for each seed and fold.

    With b_r(e) the best value that run r reported in the steps up to e, step e has the value mean over r of b_r(e). It
    is known once every run has reported a step that is not before e. A run that ends earlier keeps its last best value
    from then on. So the steps depend neither on the number of runs nor on the order in which they train. They are
    epochs, or what a training function counts: any growing integers.
    """

    def __init__(self, n_runs: int, direction: str, reported: Collection[int] = ()) -> None:
        """Start without values.

        Args:
            n_runs: the number of runs.
            direction: minimize or maximize.
            reported: the steps that the study's storage has already.
        """
        self._direction = direction
        self._steps: list[list[int]] = [[] for _ in range(n_runs)]  # ascending, by run
        self._bests: list[list[float]] = [[] for _ in range(n_runs)]  # the best value so far, by run and step
        self._is_over = [False] * n_runs
        # The worker may have died before it asked the pruner about the last step, so that step is reported again.
        self._reported = set(reported) - {max(reported, default=0)}
        self._done = -1  # all steps up to it are reported

    def add(self, place: int, epoch: int, value: float) -> None:
        """Add the value of an epoch of a run."""
        steps, bests = self._steps[place], self._bests[place]
        if steps and epoch <= steps[-1]:  # trained again after a crash
            return
        steps.append(epoch)
        bests.append(best_of([*bests[-1:], value], self._direction))

    def extend(self, place: int, epochs: Sequence[int], values: Sequence[float]) -> None:
        """Add the values that a run recorded before it was resumed."""
        for epoch, value in zip(epochs, values, strict=True):
            self.add(place, epoch, value)

    def end(self, place: int) -> None:
        """Note that the run is over, so that the others no longer wait for it."""
        self._is_over[place] = True

    @property
    def n_epochs(self) -> int:
        """The last epoch that every unfinished run has reached, or -1; if all are over, the last epoch of any."""
        last = [steps[-1] if steps else -1 for steps in self._steps]
        return min([e for e, is_over in zip(last, self._is_over, strict=True) if not is_over], default=max(last))

    def unreported(self) -> list[tuple[int, float]]:
        """Return the steps that are known but not reported yet, in order, each with its value."""
        last = self.n_epochs
        new = sorted(
            {e for steps in self._steps for e in steps[bisect_right(steps, self._done) : bisect_right(steps, last)]}
        )
        n_done = next((n for n, step in enumerate(new) if step not in self._reported), len(new))
        if n_done:
            self._done = new[n_done - 1]
        found = [(step, self._mean(step)) for step in new[n_done:] if step not in self._reported]
        return [(step, mean) for step, mean in found if mean is not None]

    def reported(self, step: int) -> None:
        """Note that the study's storage has the step."""
        self._reported.add(step)

    def _mean(self, step: int) -> float | None:
        """Return the value of a step; None if a run has no value yet in the steps up to it."""
        n_known = [bisect_right(steps, step) for steps in self._steps if steps]
        if 0 in n_known:
            return None
        bests = [bests for bests in self._bests if bests]
        return fmean(of_run[n - 1] for of_run, n in zip(bests, n_known, strict=True))
