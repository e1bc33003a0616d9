"""The sequential executor, which trains one trial after another."""

import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from optuna.trial import FrozenTrial

from sweep.execution.endings import Ended, ended, is_pruned
from sweep.execution.objective import mean_values
from sweep.execution.replicates import Means
from sweep.execution.session import WorkerSession, log
from sweep.search.space import Configuration
from sweep.tracking.run_recorder import Membership
from sweep.trial.recorded import Pause
from sweep.trial.run import MakeTraining, run_trial
from sweep.utils.errors import BeingTrained, Damaged, DiskFull, Diverged, Interrupted, Pruned

if TYPE_CHECKING:
    from sweep.training.runtime import Turn

Training = Callable[[Pause | None], list[float]]  # trains one run and returns its objectives


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
                return None
            try:
                with session.queue.beating([trial]):
                    session.settle(trial, partial(self._configure_and_train, trial))
            except KeyboardInterrupt as stopped:
                session.queue.release(trial)
                if not session.stop_of(trial).is_alone:
                    return session.signum(stopped)
        return session.signum()

    def train(self, trial: FrozenTrial, configuration: Configuration) -> list[float]:
        """Train a claimed trial. Return its objectives, each the mean over the trial's runs.

        Raises whatever ends the trial early; `WorkerSession.settle` handles it.
        """
        session = self._session
        means = session.open(trial)

        def training(place: int, values: Mapping[str, Any], anew: bool = False) -> Training:
            config = session.composer.compose(configuration.groups, values)
            member = session.membership(trial, session.replicate(place), configuration)
            made_by = session.training(configuration.groups, values, trial)
            return partial(self._train_one, trial, config, member, means, anew, made_by)

        runs = session.runs(configuration)
        if len(runs) == 1:
            return mean_values([training(0, runs[0])(None)])
        return mean_values(self._train_in_turn(trial, [partial(training, *run) for run in enumerate(runs)]))

    def _configure_and_train(self, trial: FrozenTrial) -> list[float]:
        return self.train(trial, self._session.patiently(lambda: self._session.configure(trial)))

    def _train_in_turn(self, trial: FrozenTrial, trainings: Sequence[Callable[..., Training]]) -> list[list[float]]:
        """Train the runs of a trial in turns of one epoch, so that the mean over the runs is known early.

        If memory runs out, this and later trials train their runs one after another.

        Returns:
            The objectives of each run, in the order of the runs.
        """
        from sweep.training.runtime import Turn, is_out_of_memory

        values: dict[int, list[float]] = {}
        left = {place: Turn(training()) for place, training in enumerate(trainings)}
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
                left = {p: Turn(trainings[p](anew=p == place)) for p in sorted({*left, place})}
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

    def _train_one(
        self,
        trial: FrozenTrial,
        config: DictConfig,
        member: Membership,
        means: Means,
        anew: bool,
        made_by: MakeTraining | None,
        pause: Pause | None,
    ) -> list[float]:
        """Train or resume one run of the trial. If it had finished before its worker died, only read its results.

        Args:
            trial: the trial.
            config: the run's config as Hydra composes it.
            member: the run's place in the study.
            means: gets the values of the run.
            anew: True resumes a run that failed.
            made_by: makes the training, if a program gives it.
            pause: lets other runs train after each epoch.

        Returns:
            The run's objectives.
        """
        session, place = self._session, member.replicate or 0
        run = session.plan.folder.trial(trial.number, member.replicate)
        try:
            values = session.values_of_earlier(trial, run, retry=anew)
            if values is None:
                report = session.reporter(trial, means, place, session.n_epochs(config))
                config.resume = str(run.path) if session.has_begun(run, member, config.overrides) else None
                run_trial(
                    config,
                    report,
                    folder=run.path,
                    member=member,
                    load=session.load,
                    pause=pause,
                    stop=session.stop_of(trial),
                    made_by=made_by,
                )
                values = session.objectives(run)
            means.end(place)
            return values
        except (Pruned, Diverged) as error:
            if end := ended(run):
                raise end from error
            raise
        except (Ended, BeingTrained, DiskFull, Damaged):
            raise
        except Exception as error:
            session.record_failure(run, config, error, member)
            raise
