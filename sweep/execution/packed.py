"""The packed executor, which trains many trials at once in shared, vectorised passes (docs/packed.md)."""

import signal
import sys
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial

from optuna.trial import FrozenTrial

from sweep.execution.objective import mean_values
from sweep.execution.queue import MEMORY, PACKING
from sweep.execution.run_end import is_pruned
from sweep.execution.sequential import SequentialExecutor
from sweep.execution.session import WorkerSession, log
from sweep.execution.study_run import StudyRun, runs_of
from sweep.search.samplers import is_uniform
from sweep.search.space import Configuration
from sweep.storage.optuna_internals import trial_id
from sweep.tracking.run_recorder import locked
from sweep.training.packed.member import PackMember
from sweep.training.packed.pack import report
from sweep.training.packed.parameters import Unpackable
from sweep.training.runtime import is_out_of_memory, keep_freed_memory
from sweep.trial.builtin import record_best
from sweep.trial.pack_scheduler import Group, PackScheduler
from sweep.trial.recorded import RecordedTrial
from sweep.trial.training import advise_when_full, end_recorded
from sweep.utils import gc_control
from sweep.utils.errors import DiskFull, Interrupted, Pruned, one_line
from sweep.utils.fsync import synced_together

# With `pack=auto` and a sampler that learns, a pack holds at most 1/8 of the study's trials, or 4 if that is more. So
# the sampler sees results about 8 times before the study ends.
_ROUNDS, _FEWEST_AT_ONCE = 8, 4


@dataclass
class _Entry:
    """A trial that is being trained.

    `values` holds the objectives of each finished run, by its place. `problem` is what ended the trial early.
    """

    trial: FrozenTrial
    trainings: "list[_Training]" = field(default_factory=list)
    values: dict[int, list[float]] = field(default_factory=dict)
    problem: Exception | None = None


@dataclass
class _Training:
    """One run of a trial, and its member in a pack.

    `held` holds the run's lock and its open record, once the run has begun.
    """

    entry: _Entry
    run: StudyRun
    group: Group
    member: PackMember
    trial: RecordedTrial
    held: ExitStack = field(default_factory=ExitStack)


class PackedExecutor:
    """Trains up to `pack` runs at once, each in the pack of its structure.

    One loop serves all packs: it trains all of them for an epoch, reports it, stores how trials ended, and claims new
    trials for the places that became free. A trial that cannot be packed is trained by the sequential executor, while
    the packs wait.
    """

    def __init__(self, session: WorkerSession, sequential: SequentialExecutor) -> None:
        """Make the executor. `sequential` trains the trials that cannot be packed."""
        self._session, self._sequential = session, sequential
        keep_freed_memory()
        n_trials, pack = session.plan.n_trials, session.settings.pack
        learns = session.plan.order is None and not is_uniform(session.settings.sampler)
        most = max(_FEWEST_AT_ONCE, n_trials // _ROUNDS) if learns else n_trials
        self._scheduler = PackScheduler(None if pack == "auto" else pack, most, self._session.load)
        self._n_places: int = 1 if pack == "auto" else pack
        self._most_places = sys.maxsize  # lowered when memory runs out
        self._trainings: dict[PackMember, _Training] = {}
        self._claimed: list[FrozenTrial] = []  # this worker sends heartbeats for them
        self._unpackable: list[tuple[FrozenTrial, Configuration]] = []  # wait for the sequential executor
        self._closed: list[_Entry] = []  # all their runs are over, but the storage does not have the result yet

    def run(self) -> int | None:
        """Train until no trial is left to claim, or a stop is requested.

        Trials that are still training at the end are released. After a signal their state is saved first.

        Returns:
            The number of the signal that stopped it; None if no signal did.
        """
        gc_control.resume()
        try:
            with self._session.queue.heartbeats(self._claimed):
                self._fill()
                while self._trainings or self._unpackable or self._refill():
                    self._train_unpackable()
                    self._train_epoch()
                    self._store_closed()
                    self._release_stopped()
                    if self._session.is_asked_to_stop():
                        raise Interrupted(self._session.stop.signum or signal.SIGTERM)
                    self._fill()
        except KeyboardInterrupt as stopped:
            is_second = not isinstance(stopped, Interrupted)  # a second Ctrl-C, which may come inside an epoch
            why = Interrupted(signal.SIGINT) if is_second else stopped
            self._return_trials([*self._trainings.values()], why, resumable=not is_second)
            return self._session.signum(stopped)
        finally:  # also after an error
            self._return_trials([*self._trainings.values()], Interrupted(signal.SIGTERM), resumable=False)
            for trial in self._claimed:
                self._session.release(trial)
        return self._session.signum()

    def _fill(self) -> None:
        """Claim trials while there are places for all of their runs. Stop at a trial that cannot be packed."""
        n_runs = self._session.settings.n_runs
        with synced_together():
            is_over = self._session.patiently(self._session.is_over)
            while (
                not is_over
                and not self._unpackable
                and (not self._trainings or len(self._trainings) + n_runs <= self._n_places)
            ):
                trial = self._session.claim()
                if trial is None:
                    return
                self._claimed.append(trial)
                self._begin_trial(trial)
                if self._closed:
                    self._store_closed()  # so that the sampler can use the result for the next trial
                    is_over = self._session.patiently(self._session.is_over)
                else:
                    is_over = self._session.is_asked_to_stop()

    def _refill(self) -> bool:
        """Wait for a trial, and claim trials again. Return False if there are none."""
        while self._session.await_work():
            self._fill()
            if self._trainings or self._unpackable:
                return True
        return False

    def _begin_trial(self, trial: FrozenTrial) -> None:
        """Admit the trial's runs to packs. Runs that finished before their worker died are only read.

        If a run cannot be packed, the whole trial waits for the sequential executor.
        """
        entry = _Entry(trial)
        try:
            means = self._session.open(trial)
            configuration = self._session.patiently(lambda: self._session.configure(trial))
            try:
                trainings = [self._prepare(entry, run) for run in runs_of(self._session, trial, configuration, means)]
            except Unpackable as why:
                self._note(trial, PACKING, f"trains sequentially: {why}")
                self._unpackable.append((trial, configuration))
                return
            for training in filter(None, trainings):
                self._begin(training)
        except Exception as error:
            if self._fits_later(entry, error):
                self._most_places = self._n_places = len(self._trainings) - len(entry.trainings)
                message = f"out of memory, {self._n_places} in a pack from now on"
                self._note(trial, MEMORY, message)
                self._return_entries([entry], message, error)
                return
            self._end(entry, error)
        if not entry.trainings:
            self._closed.append(entry)

    def _train_unpackable(self) -> None:
        """Train the trials that cannot be packed, one after another. The packs wait."""
        while self._unpackable:
            trial, configuration = self._unpackable.pop()
            try:
                self._session.settle(trial, partial(self._sequential.train, trial, configuration))
            except Interrupted:
                if not self._session.stop_of(trial).is_alone:
                    raise
                self._session.release(trial)
            self._claimed.remove(trial)

    def _prepare(self, entry: _Entry, run: StudyRun) -> _Training | None:
        """Build a run as a member of a pack, without admitting it yet. Return None if the run has finished before.

        Raises:
            Ended: the run ended its whole trial before.
            Unpackable: the run cannot be packed.
            Damaged: its record or its checkpoint cannot be read.
            Exception: the run cannot be built. Its failure is recorded, unless there is memory for it later.
        """
        with run.recorded_end(lambda error: isinstance(error, Unpackable) or self._fits_later(entry, error)):
            if (earlier := run.earlier_values()) is not None:
                entry.values[run.place] = earlier
                return None
            config = run.config()
            group, member = self._scheduler.member(config)
            trial = run.recorded(config, is_packed=True)  # `_advance` adds each member's share of the epoch
            if (state := trial.restore()) is not None:
                if state["losses"]:
                    raise Unpackable("its checkpoint was saved inside an epoch")
                group.pack.load_state_dict(member, state)
        return _Training(entry, run, group, member, trial)

    def _fits_later(self, entry: _Entry, error: Exception) -> bool:
        """Return whether memory ran out only because other trials hold it."""
        return is_out_of_memory(error) and len(self._trainings) > len(entry.trainings)

    def _begin(self, training: _Training) -> None:
        """Take the run's lock, begin its record, and admit it to its pack."""
        data, device = training.group.data.description, training.group.pack.device.type
        folder = training.run.folder
        with ExitStack() as held, advise_when_full(folder):
            held.enter_context(locked(folder))
            held.enter_context(training.trial)
            training.trial.describe(dataset=data, device=device)
            training.held = held.pop_all()
        training.member.trial = training.trial
        if self._session.settings.pack == "auto":
            self._n_places = min(max(self._n_places, training.group.width), self._most_places)
        self._trainings[training.member] = training
        training.entry.trainings.append(training)
        training.group.pack.admit(training.member)

    def _train_epoch(self) -> None:
        """Train all packs for one epoch, finish the runs that have ended, and save those whose checkpoint is due.

        Epochs are reported in the order of the trials' numbers, as if the trials trained one after another: what a
        pruner compares a trial with depends on what was reported before. The rows of a pack have no such order.
        """
        ended: dict[PackMember, Exception | None] = {}
        for group in self._scheduler.groups:
            ended |= self._advance(group)
        self._session.heed_requests(entry.trial for entry in self._entries())
        report(sorted(self._trainings, key=self._order), ended)
        with synced_together():
            for member in sorted(ended.keys() & self._trainings.keys(), key=self._order):
                if member in self._trainings:  # otherwise another run of its trial has just ended it
                    self._finish(self._trainings[member], ended[member])
            for training in [*self._trainings.values()]:
                trial = training.trial
                if trial.should_save and not trial.should_stop:  # on a stop, `run` saves all runs that are left
                    self._save(training)

    def _order(self, member: PackMember) -> tuple[int, int]:
        training = self._trainings[member]
        return training.entry.trial.number, training.run.place

    def _advance(self, group: Group) -> dict[PackMember, Exception | None]:
        """Train a pack for one epoch. Return the runs that have ended early, each with what ended it."""
        trainings = [self._trainings[member] for member in group.pack.members]
        try:
            ended, train_s = group.advance()
        except Exception as error:  # the pass itself failed, not a single trial
            self._give_up(group, trainings, error)
            return {}
        for training in trainings:
            training.trial.train_s += train_s
        return ended

    def _finish(self, training: _Training, ending: Exception | None) -> None:
        """End a run: test and record its best weights, or record the `ending` that stopped it early.

        The trial ends too if this was its last run, or if the run did not complete.
        """
        entry, run = training.entry, training.run
        try:
            with run.recorded_end():
                try:
                    self._test(training, ending)
                    entry.values[run.place] = run.finished_values()
                except Exception:
                    self._release(training)
                    raise
                self._release(training)
        except Exception as problem:
            self._end(entry, problem)
        if not entry.trainings:
            self._closed.append(entry)

    def _test(self, training: _Training, ending: Exception | None) -> None:
        """Test and record the best weights of a run. Raise the `ending` that stopped it early, and record that."""
        group, member, trial = training.group, training.member, training.trial
        with end_recorded(trial):
            trial.finish(member.reached())
            if ending is not None:
                raise ending
            record_best(trial, member, group.n_weights, group.test(member), group.facts)

    def _end(self, entry: _Entry, problem: Exception) -> None:
        """End the trial's other runs: they are pruned with it, or stopped so that a later attempt can resume them."""
        entry.problem = problem
        for training in [*entry.trainings]:
            ending = Pruned(training.member.epoch) if is_pruned(problem) else Interrupted(signal.SIGTERM)
            training.trial.finish(training.member.reached())
            training.trial.end(ending)
            self._release(training)

    def _store_closed(self) -> None:
        """Store in the storage how trials ended. By now their records are on the disk."""
        with synced_together():
            while self._closed:
                entry = self._closed.pop(0)
                self._claimed.remove(entry.trial)
                self._session.settle(entry.trial, partial(_values, entry))

    def _release(self, training: _Training) -> None:
        training.group.pack.release(training.member)
        training.held.close()
        del self._trainings[training.member]
        training.entry.trainings.remove(training)

    def _save(self, training: _Training) -> None:
        """Write the run's checkpoint."""
        with advise_when_full(training.run.folder), suppress(Interrupted):  # `run` itself notices a request to stop
            training.trial.save(training.member.epoch, training.group.pack.state_dict(training.member))

    def _give_up(self, group: Group, trainings: list[_Training], error: Exception) -> None:
        """Release the pack's trials after its pass failed. They resume from their last checkpoints.

        If memory ran out, they will train in packs of half the width. After any other error they train sequentially.
        """
        if is_out_of_memory(error) and len(trainings) > 1:
            self._most_places = self._n_places = len(trainings) // 2
            self._scheduler.forget(group)
            message = f"out of memory with {len(trainings)} in a pack, {self._n_places} from now on"
            self._note(trainings[0].entry.trial, MEMORY, message)
        else:  # whoever claims one of them then stores with it why it trains sequentially
            message = one_line(error, 160)
            self._scheduler.refuse(group, Unpackable(message))
        self._return_entries(_entries(trainings), message, error)

    def _return_entries(self, entries: list[_Entry], message: str, error: Exception) -> None:
        """Release trials, which this or another worker will soon claim again, and log why."""
        log.warning("%d trials are released: %s", len(entries), message, exc_info=error)
        for entry in entries:
            self._return_trials([*entry.trainings], Interrupted(signal.SIGTERM), resumable=False)
            self._claimed.remove(entry.trial)
            self._session.release(entry.trial)

    def _return_trials(self, trainings: list[_Training], why: Interrupted, resumable: bool) -> None:
        """End the runs so that they can be resumed later.

        Args:
            trainings: the runs.
            why: the interruption to record.
            resumable: True writes a checkpoint first. The runs must then be at the end of an epoch.
        """
        for training in trainings:
            if resumable:
                with suppress(OSError, DiskFull):
                    self._save(training)
            training.trial.end(why)
            self._release(training)

    def _release_stopped(self) -> None:
        """Save and release the trials that are to stop alone. They are at the end of an epoch."""
        for entry in self._entries():
            if self._session.stop_of(entry.trial).is_alone:
                self._return_trials([*entry.trainings], Interrupted(signal.SIGTERM), resumable=True)
                self._claimed.remove(entry.trial)
                self._session.release(entry.trial)

    def _entries(self) -> list[_Entry]:
        return _entries(self._trainings.values())

    def _note(self, trial: FrozenTrial, name: str, message: str) -> None:
        """Store a line as the trial's user attribute `name`. The study's command shows the same line only once."""
        self._session.patiently(lambda: self._session.storage.set_trial_user_attr(trial_id(trial), name, message))


def _entries(trainings: Iterable[_Training]) -> list[_Entry]:
    """Return the trials of the runs, each once."""
    return [*{id(training.entry): training.entry for training in trainings}.values()]


def _values(entry: _Entry) -> list[float]:
    """Return the trial's objectives, or raise what ended it early."""
    if entry.problem is not None:
        raise entry.problem
    return mean_values([*entry.values.values()])
