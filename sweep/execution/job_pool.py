"""Keep a study's workers alive that run as jobs of a batch system, one by one."""

import itertools
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sweep.execution.demand import Demand
from sweep.execution.submitted import SubmittedJobs
from sweep.utils.errors import ConfigError, DiskFull, WorkersLost, one_line
from sweep.utils.terminal import say

_POLL_S = 1.0
_SUBMIT_AGAIN_S = 10.0
_QUICK_S, _LONGEST_PAUSE_S = 60.0, 300.0  # a job that was lost sooner is replaced later and later


@dataclass
class _Place:
    """The place of a job: when it ends, another job gets its place.

    Attributes:
        numbers: the numbers of its jobs.
        job: the number of the one that has not ended; None if the place is free.
        since: the progress of the study when that one was submitted.
        n_lost: how many jobs of the place ended in a row without any progress of the study.
        n_quick: how many were lost in a row soon after they were submitted, as on a node that is broken.
        submitted_at: when the last one was submitted, by `time.monotonic`.
        not_before: when the next one may be submitted, by `time.monotonic`.
    """

    numbers: Iterator[int]
    job: int | None = None
    since: tuple[int, int] = field(default=(0, 0))
    n_lost: int = 0
    n_quick: int = 0
    submitted_at: float = 0.0
    not_before: float = 0.0


class JobPool:
    """The jobs of one command."""

    def __init__(self, jobs: SubmittedJobs, demand: Demand) -> None:
        """Prepare the pool. Nothing is submitted yet."""
        self._jobs, self._demand = jobs, demand
        n_places = math.ceil(demand.plan.settings.n_jobs / demand.plan.n_tasks)
        self._places = [_Place(itertools.count(place, n_places)) for place in range(n_places)]
        self._n_refused, self._submit_at = 0, 0.0

    def work(self) -> None:
        """Keep the jobs alive until the study is over. Then cancel those that still wait, and await the others.

        Raises:
            ConfigError: jobs cannot be submitted, or a worker found the config unusable.
            DiskFull: a worker found no room.
            WorkersLost: a job was lost too often in a row without any progress of the study.
        """
        try:
            while not self._demand.is_over():
                self._fill()
                time.sleep(_POLL_S)
                self._note_ends()
            while len(self._jobs):
                self._jobs.cancel_pending()
                time.sleep(_POLL_S)
                self._jobs.ended()
        finally:
            self._jobs.cancel_pending()

    def _fill(self) -> None:
        """Submit jobs for free places, as many as are useful."""
        now = time.monotonic()
        free = [place for place in self._places if place.job is None and now >= place.not_before]
        if not free or now < self._submit_at:
            return
        free = free[: max(0, self._demand.n_jobs() - len(self._jobs))]
        if not free or not self._demand.has_work():
            return
        progress = self._demand.progress()
        for place in free:
            place.job, place.since, place.submitted_at = next(place.numbers), progress, now
        try:
            self._jobs.submit(self._demand.job(), [place.job for place in free if place.job is not None])
            self._n_refused = 0
        except Exception as error:
            for place in free:
                place.job = None
            self._refused(error)

    def _refused(self, error: Exception) -> None:
        """Try again later after jobs could not be submitted. Raise ConfigError at the first time, or too often."""
        self._n_refused += 1
        if not self._demand.has_begun() or self._n_refused > self._demand.most_lost:
            raise ConfigError("hydra/launcher", f"cannot start workers: {one_line(error)}") from error
        say(f"warning: workers cannot be launched ({one_line(error, 120)}); trying again", err=True)
        self._submit_at = time.monotonic() + self._n_refused * _SUBMIT_AGAIN_S

    def _note_ends(self) -> None:
        """Free the places of jobs that have ended. Raise what the pool cannot mend."""
        ended = self._jobs.ended()
        places = [place for place in self._places if place.job in ended]
        if not places:
            return
        progress = self._demand.progress()
        problems = [problem for place in places if (problem := self._free(place, ended, progress))]
        if problems and not self._demand.is_over():
            others = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
            say(f"warning: workers were lost ({problems[0]}{others}); launching them again", err=True)

    def _free(self, place: _Place, ended: dict[int, list[Any] | Exception], progress: tuple[int, int]) -> str | None:
        """Free the place of a job that has ended. Return why it ended early; None if it found no more work."""
        assert place.job is not None
        outcome, place.job = ended[place.job], None
        if isinstance(outcome, ConfigError | DiskFull):
            raise outcome
        problem = one_line(outcome, 160) if isinstance(outcome, Exception) else stopped(outcome)
        place.n_lost = place.n_lost + 1 if progress == place.since else 0
        now = time.monotonic()
        place.n_quick = place.n_quick + 1 if problem and now < place.submitted_at + _QUICK_S else 0
        place.not_before = now + min(_LONGEST_PAUSE_S, 2.0**place.n_quick if place.n_quick > 1 else 0.0)
        if place.n_lost > self._demand.most_lost and not len(self._jobs) and not self._demand.is_over():
            if not self._demand.has_begun():
                raise ConfigError("hydra/launcher", f"cannot start workers: {problem}")
            raise WorkersLost(problem or "they find no trial to train")
        return problem


def stopped(returned: list[Any]) -> str | None:
    """Return which signal stopped a worker, in words; None if none did. `returned`: what its tasks returned."""
    signums = [signum for signum in returned if signum is not None]
    return f"stopped by {signal.Signals(signums[0]).name}" if signums else None
