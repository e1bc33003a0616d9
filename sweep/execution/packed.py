"""Trains many trials at once, in vectorised passes that they share (docs/packed.md)."""

import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from omegaconf import DictConfig
from optuna.trial import FrozenTrial

from sweep.execution.endings import Ended, ended, is_pruned
from sweep.execution.objective import mean_values
from sweep.execution.queue import PACKING
from sweep.execution.replicates import Means
from sweep.execution.sequential import SequentialExecutor
from sweep.execution.session import WorkerSession, log
from sweep.search.samplers import is_uniform
from sweep.search.space import Configuration
from sweep.storage.optuna_internals import trial_id
from sweep.tracking.folders import RunFolder
from sweep.tracking.run_recorder import Membership, locked
from sweep.tracking.store import recorded_uri, tracking_store
from sweep.tracking.stored_run import stored_config
from sweep.training.packed.pack import PackMember
from sweep.training.packed.parameters import Unpackable
from sweep.training.runtime import is_out_of_memory, keep_freed_memory
from sweep.trial.builtin import record_best
from sweep.trial.pack_scheduler import Group, PackScheduler
from sweep.trial.recorded import RecordedTrial
from sweep.trial.run import advise_when_full
from sweep.utils import gc_control
from sweep.utils.errors import BeingTrained, Damaged, DiskFull, Diverged, Interrupted, Pruned, one_line
from sweep.utils.fsync import synced_together
from sweep.utils.paths import absolute

_ROUNDS, _FEWEST_AT_ONCE = 8, 4  # a sampler that learns is to see results so often, if `pack=auto` is to decide


@dataclass
class _Entry:
    """A trial that is being trained. values: of its finished runs. problem: what ended it early."""

    trial: FrozenTrial
    means: Means
    trainings: "list[_Training]" = field(default_factory=list)
    values: dict[int, list[float]] = field(default_factory=dict)
    problem: Exception | None = None


@dataclass
class _Training:
    """One run of a trial, and its place in a pack.

    composed: returns its config as Hydra composes it. held: its lock and its open record, once it has begun.
    """

    entry: _Entry
    membership: Membership
    run: RunFolder
    composed: Callable[[], DictConfig]
    group: Group
    member: PackMember
    trial: RecordedTrial
    held: ExitStack = field(default_factory=ExitStack)

    @property
    def place(self) -> int:
        return self.membership.replicate or 0


class PackedExecutor:
    """Keeps up to `pack` runs in training, each in the pack of its structure.

    A trial that cannot be packed is trained by `sequential`, while the packs wait.
    """

    def __init__(self, session: WorkerSession, sequential: SequentialExecutor) -> None:
        self._session, self._sequential = session, sequential
        keep_freed_memory()
        n_trials, pack = session.plan.n_trials, session.settings.pack
        learns = session.plan.order is None and not is_uniform(session.settings.sampler)
        most = max(_FEWEST_AT_ONCE, n_trials // _ROUNDS) if learns else n_trials
        self._scheduler = PackScheduler(None if pack == "auto" else pack, most, self._session.load)
        self._n_places: int = 1 if pack == "auto" else pack
        self._most_places = sys.maxsize  # that memory was found to allow
        self._trainings: dict[PackMember, _Training] = {}
        self._claimed: list[FrozenTrial] = []
        self._unpackable: list[tuple[FrozenTrial, Configuration]] = []  # which cannot be packed
        self._closed: list[_Entry] = []  # whose runs are over, but not told of yet
        self._noted: set[str] = set()

    def run(self) -> int | None:
        """Train until every trial is taken or done, or something says to stop. Return the signal that stopped it."""
        gc_control.resume()
        try:
            with self._session.queue.beating(self._claimed):
                self._fill()
                while self._trainings or self._unpackable:
                    self._train_unpackable()
                    for group in self._scheduler.groups:
                        self._advance(group)
                    self._store_closed()
                    if self._session.is_asked_to_stop():
                        raise Interrupted(self._session.stop.signum or signal.SIGTERM)
                    self._fill()
        except KeyboardInterrupt as stopped:
            why = stopped if isinstance(stopped, Interrupted) else Interrupted(signal.SIGINT)
            self._return_trials([*self._trainings.values()], why, resumable=True)
            return self._session.signum(stopped)
        finally:  # after an error, too
            self._return_trials([*self._trainings.values()], Interrupted(signal.SIGTERM), resumable=False)
            for trial in self._claimed:
                if self._session.queue.is_mine(trial):
                    self._session.queue.release(trial)
        return self._session.signum()

    def _fill(self) -> None:
        """Claim trials while there are places for all of their runs, or until one cannot be packed."""
        n_runs = self._session.settings.seeds
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
                    self._store_closed()  # the next trial's sampler may know
                    is_over = self._session.patiently(self._session.is_over)
                else:
                    is_over = self._session.is_asked_to_stop()

    def _begin_trial(self, trial: FrozenTrial) -> None:
        """Admit the trial's runs to packs, unless they cannot be packed or have finished before."""
        entry = _Entry(trial, self._session.open(trial))
        try:
            configuration = self._session.patiently(lambda: self._session.configure(trial))
            try:
                trainings = [
                    self._prepare(entry, configuration, place, values)
                    for place, values in enumerate(self._session.runs(configuration))
                ]
            except Unpackable as why:
                self._note(trial, f"trains alone: {why}")
                self._unpackable.append((trial, configuration))
                return
            for training in filter(None, trainings):
                self._begin(training)
        except Exception as error:
            if self._fits_later(entry, error):
                self._most_places = self._n_places = len(self._trainings) - len(entry.trainings)
                self._return_entries([entry], f"out of memory, {self._n_places} in a pack from now on", error)
                return
            self._end(entry, error)
        if not entry.trainings:
            self._closed.append(entry)

    def _train_unpackable(self) -> None:
        """Train the trials that cannot be packed; the packs wait."""
        while self._unpackable:
            trial, configuration = self._unpackable.pop()
            self._session.settle(trial, partial(self._sequential.train, trial, configuration))
            self._claimed.remove(trial)

    def _prepare(
        self, entry: _Entry, configuration: Configuration, place: int, values: Mapping[str, Any]
    ) -> _Training | None:
        """Return the run with a place in a pack, not taken yet; None if it has finished before."""
        session, trial, groups = self._session, entry.trial, configuration.groups
        membership = session.membership(trial, session.replicate(place), configuration)
        run = session.plan.folder.trial(trial.number, membership.replicate)
        composed = partial(session.composer.compose, groups, values)
        try:
            if (earlier := session.values_of_earlier(trial, run)) is not None:
                self._finished(entry, place, earlier)
                return None
            config = session.splits.fit(session.composer.validated(groups, values))
            if session.has_begun(run, membership, config.overrides or []):
                config = stored_config(run, config)
            group, member = self._scheduler.member(config)
            output_dir = absolute(config.output_dir)
            recorded = RecordedTrial(
                run,
                config,
                output_dir=output_dir,
                store=recorded_uri(tracking_store(config.tracking, output_dir), output_dir),
                member=membership,
                report=session.reporter(trial, entry.means, place, config.trainer.epochs),
                stop=session.stop,
                is_timed=False,  # members of a pack share the time
            )
            if (state := recorded.restore()) is not None:
                if state["losses"]:
                    raise Unpackable("its checkpoint was saved inside an epoch")
                group.pack.load_state_dict(member, state)
        except (Ended, Unpackable, BeingTrained, Damaged):
            raise
        except Exception as error:
            if not self._fits_later(entry, error):
                session.record_failure(run, composed(), error, membership)
            raise
        return _Training(entry, membership, run, composed, group, member, recorded)

    def _fits_later(self, entry: _Entry, error: Exception) -> bool:
        """Return whether memory ran out only because other trials hold it."""
        return is_out_of_memory(error) and len(self._trainings) > len(entry.trainings)

    def _begin(self, training: _Training) -> None:
        """Begin the run's record, and admit it to its pack."""
        data, device = training.group.data.description, training.group.pack.device.type
        with ExitStack() as held, advise_when_full(training.run):
            held.enter_context(locked(training.run))
            held.enter_context(training.trial)
            training.trial.describe(dataset=data, device=device)
            training.held = held.pop_all()
        training.member.trial = training.trial
        if self._session.settings.pack == "auto":
            self._n_places = min(max(self._n_places, training.group.width), self._most_places)
        self._trainings[training.member] = training
        training.entry.trainings.append(training)
        training.group.pack.admit(training.member)

    def _advance(self, group: Group) -> None:
        """Train a pack for one epoch."""
        trainings = [self._trainings[member] for member in group.pack.members]
        try:
            ended_now, train_s = group.train_epoch()
        except Exception as error:  # not of a single trial: the pass itself
            self._give_up(group, trainings, error)
            return
        for training in trainings:
            training.trial.train_s += train_s
        with synced_together():
            for member, ending in ended_now.items():
                if member in self._trainings:  # else it left with another run of its trial
                    self._finish(self._trainings[member], ending)
            for member in group.pack.members:
                trial = self._trainings[member].trial
                if trial.should_save and not trial.should_stop:  # `run` saves all that are left when it stops
                    self._save(self._trainings[member])

    def _finish(self, training: _Training, ending: Exception | None) -> None:
        """End the run; and the trial, if that was its last run or ended badly."""
        entry = training.entry
        try:
            with advise_when_full(training.run):
                try:
                    training.trial.finish(training.member.reached())
                    if ending is not None:
                        raise ending
                    test = training.group.test(training.member)
                    record_best(training.trial, training.member, training.group.n_weights, test)
                    training.trial.end()
                except Exception as error:
                    training.trial.end(error)
                    raise
            self._finished(entry, training.place, self._session.objectives(training.run))
            self._release(training)
        except (Pruned, Diverged) as error:
            self._release(training)
            self._end(entry, ended(training.run) or error)
        except (Damaged, DiskFull) as error:
            self._release(training)
            self._end(entry, error)
        except Exception as error:
            self._release(training)
            self._session.record_failure(training.run, training.composed(), error, training.membership)
            self._end(entry, error)
        if not entry.trainings:
            self._closed.append(entry)

    def _finished(self, entry: _Entry, place: int, values: list[float]) -> None:
        entry.values[place] = values
        entry.means.end(place)

    def _end(self, entry: _Entry, problem: Exception) -> None:
        """End the trial's other runs: they are pruned with it, or will be continued later."""
        entry.problem = problem
        for training in [*entry.trainings]:
            ending = Pruned(training.member.epoch) if is_pruned(problem) else Interrupted(signal.SIGTERM)
            training.trial.finish(training.member.reached())
            training.trial.end(ending)
            self._release(training)

    def _store_closed(self) -> None:
        """Store how trials have ended, now that their records are on the disk."""
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
        with advise_when_full(training.run), suppress(Interrupted):  # `run` asks for a stop itself
            training.trial.save(training.member.epoch, training.group.pack.state_dict(training.member))

    def _give_up(self, group: Group, trainings: list[_Training], error: Exception) -> None:
        """Release the pack's trials, to be trained in smaller packs, or one by one, from where they were last saved."""
        if is_out_of_memory(error) and len(trainings) > 1:
            self._most_places = self._n_places = len(trainings) // 2
            self._scheduler.forget(group)
            message = f"out of memory with {len(trainings)} in a pack, {self._n_places} from now on"
        else:
            why = Unpackable(one_line(error, 160))
            self._scheduler.refuse(group, why)
            message = f"trains alone: {why}"
        self._return_entries([*{id(training.entry): training.entry for training in trainings}.values()], message, error)

    def _return_entries(self, entries: list[_Entry], message: str, error: Exception) -> None:
        """Release trials that will be claimed again in a moment, here or by another worker."""
        log.warning("%d trials are handed back: %s", len(entries), message, exc_info=error)
        self._note(entries[0].trial, message)
        for entry in entries:
            self._return_trials([*entry.trainings], Interrupted(signal.SIGTERM), resumable=False)
            self._claimed.remove(entry.trial)
            self._session.queue.release(entry.trial)

    def _return_trials(self, trainings: list[_Training], why: Interrupted, resumable: bool) -> None:
        """Leave the runs for later. resumable: whether their state is that of the last finished epoch."""
        for training in trainings:
            if resumable:
                with suppress(OSError, DiskFull):
                    self._save(training)
            training.trial.end(why)
            self._release(training)

    def _note(self, trial: FrozenTrial, message: str) -> None:
        """Have the study's command show a line, once."""
        if message not in self._noted:
            self._noted.add(message)
            self._session.patiently(
                lambda: self._session.storage.set_trial_user_attr(trial_id(trial), PACKING, message)
            )


def _values(entry: _Entry) -> list[float]:
    """Return the trial's objectives, or raise what ended it early."""
    if entry.problem is not None:
        raise entry.problem
    return mean_values([*entry.values.values()])
