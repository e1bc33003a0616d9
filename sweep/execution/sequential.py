"""The sequential executor, which trains one trial after another."""

import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial

from sweep.execution.objective import mean_values
from sweep.execution.run_end import is_pruned
from sweep.execution.session import WorkerSession, log
from sweep.execution.study_run import StudyRun, runs_of
from sweep.search.space import Configuration
from sweep.tracking.run_recorder import locked
from sweep.trial.recorded import Pause
from sweep.trial.training import advise_when_full, train
from sweep.utils.errors import Interrupted, Pruned

if TYPE_CHECKING:
    from sweep.training.runtime import Turn


class SequentialExecutor:
    """Trains one trial at a time. The runs of a trial, one for each seed, take turns, an epoch each."""

    def __init__(self, session: WorkerSession) -> None:
        self._session = session
        self._one_by_one = False  # True once memory ran out with all seeds of a trial at once

    def run(self) -> int | None:
        """Train until no trial is left to claim, or a stop is requested.

        Returns:
            The number of the signal that stopped it; None if no signal did.
        """
        session = self._session
        while not session.patiently(session.is_over):
            trial = session.claim()
            if trial is None:
                if session.await_work():
                    continue
                return session.signum()
            try:
                with session.queue.heartbeats([trial]):
                    session.settle(trial, partial(self._configure_and_train, trial))
            except KeyboardInterrupt as stopped:
                session.release(trial)
                if not session.stop_of(trial).is_alone:
                    return session.signum(stopped)
        return session.signum()

    def train(self, trial: FrozenTrial, configuration: Configuration) -> list[float]:
        """Train a claimed trial. Return its objectives, each the mean over the trial's runs.

        Raises whatever ends the trial early; `WorkerSession.settle` handles it.
        """
        runs = runs_of(self._session, trial, configuration, self._session.open(trial))
        if len(runs) == 1:
            return mean_values([_train_one(runs[0])])
        return mean_values(self._train_in_turn(trial, runs))

    def _configure_and_train(self, trial: FrozenTrial) -> list[float]:
        return self.train(trial, self._session.patiently(lambda: self._session.configure(trial)))

    def _train_in_turn(self, trial: FrozenTrial, runs: Sequence[StudyRun]) -> list[list[float]]:
        """Train the runs of a trial in turns of one epoch, so that the mean over the runs is known early.

        If memory runs out, this and later trials train their runs one after another.

        Returns:
            The objectives of each run, in the order of the runs.
        """
        from sweep.training.runtime import Turn, is_out_of_memory

        values: dict[int, list[float]] = {}
        left = {run.place: Turn(partial(_train_one, run)) for run in runs}
        at_once = not self._one_by_one
        while left:
            place = min(left, key=lambda place: (left[place].epoch * at_once, place))
            try:
                left[place].train()
                if left[place].is_over:
                    values[place] = left.pop(place).result
            except BaseException as problem:
                is_last = sum(turn.has_begun for turn in left.values()) == 1
                del left[place]
                if is_last or not isinstance(problem, Exception) or not is_out_of_memory(problem):
                    self._end_turns(trial, left.values(), problem)
                    raise
                log.warning("trial %d: out of memory, its runs train one after the other", trial.number)
                self._end_turns(trial, left.values(), Interrupted(signal.SIGTERM))
                self._one_by_one, at_once = True, False
                left = {p: Turn(partial(_train_one, runs[p], retry=p == place)) for p in sorted({*left, place})}
        return [values[place] for place in sorted(values)]

    def _end_turns(self, trial: FrozenTrial, turns: Iterable["Turn[list[float]]"], problem: BaseException) -> None:
        """End the trial's other runs after `problem` ended one of them.

        They are pruned with it, or interrupted so that they can be resumed.
        """
        for turn in turns:
            with suppress(Exception, KeyboardInterrupt):  # the caller raises `problem`
                if not turn.has_begun:
                    continue
                if self._session.stop_of(trial).signum is not None and type(problem) is not KeyboardInterrupt:
                    turn.train()  # saves a checkpoint and stops
                turn.end(Pruned(turn.epoch) if is_pruned(problem) else Interrupted(signal.SIGTERM))


def _train_one(run: StudyRun, pause: Pause | None = None, *, retry: bool = False) -> list[float]:
    """Train or resume a run. If it had finished before its worker died, only read its results.

    Args:
        run: the run.
        pause: lets other runs train after each epoch.
        retry: True resumes a run that failed.

    Returns:
        The run's objectives.
    """
    with run.recorded_end():
        if (values := run.earlier_values(retry)) is not None:
            return values
        training = run.training()
        with advise_when_full(run.folder), locked(run.folder):
            train(training, run.recorded(training.config, pause=pause))
        return run.finished_values()
