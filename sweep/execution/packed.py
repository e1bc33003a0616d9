"""A worker at work on many trials at once: a shift whose trials share vectorised passes (docs/packed.md)."""

import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from optuna.trial import FrozenTrial

from sweep.config.schema import Config
from sweep.execution.objective import mean_values, run_values
from sweep.execution.queue import PACKING, PROBLEM
from sweep.execution.replicates import Means
from sweep.execution.sequential import SequentialExecutor, ended, is_pruned, log
from sweep.search.samplers import is_uniform
from sweep.search.space import Configuration
from sweep.tracking import journal
from sweep.tracking.attempt import Attempt, locked, saved_state
from sweep.tracking.folders import RunFolder
from sweep.tracking.recorder import Report
from sweep.tracking.start import stored_config
from sweep.tracking.store import recorded_uri, tracking_store
from sweep.training.packed.pack import PackMember
from sweep.training.packed.parameters import Unpackable
from sweep.training.runtime import is_out_of_memory, keep_freed_memory
from sweep.trial.pack_scheduler import Group, PackScheduler
from sweep.trial.run import told_when_full
from sweep.utils import gc_control
from sweep.utils.errors import BeingTrained, Damaged, DiskFull, Diverged, Interrupted, Pruned, one_line
from sweep.utils.fsync import synced_together
from sweep.utils.paths import absolute
from sweep.utils.signals import StopRequest

if TYPE_CHECKING:
    from sweep.execution.worker import Worker


_ROUNDS, _FEWEST_AT_ONCE = 8, 4  # a sampler that learns is to see results so often, if `pack=auto` is to decide


@dataclass
class _Entry:
    """A trial at work. values: of its runs that are done. problem: what ended it early."""

    trial: FrozenTrial
    means: Means
    seats: "list[_Seat]" = field(default_factory=list)
    values: dict[int, list[float]] = field(default_factory=dict)
    problem: Exception | None = None


@dataclass
class _Seat:
    """One run of a trial and its slot. composed: gives its config as Hydra has it. held: its lock and its open record,
    once it has begun."""

    entry: _Entry
    replicate: int | None
    run: RunFolder
    composed: Callable[[], DictConfig]
    config: Config
    group: Group
    slot: PackMember
    attempt: Attempt | None = None
    held: ExitStack = field(default_factory=ExitStack)
    train_s: float = 0.0


class PackedExecutor(SequentialExecutor):
    """Keeps up to `pack` runs in training, each in the pack of its structure. What cannot be packed trains alone."""

    def __init__(self, worker: "Worker", name: str, stop: StopRequest) -> None:
        super().__init__(worker, name, stop)
        keep_freed_memory()
        n_trials, pack = worker.n_trials, self._settings.pack
        learns = worker.order is None and not is_uniform(self._settings.sampler)
        most = max(_FEWEST_AT_ONCE, n_trials // _ROUNDS) if learns else n_trials
        self._packer = PackScheduler(None if pack == "auto" else pack, most, self._load)
        self._n_slots: int = 1 if pack == "auto" else pack
        self._most_slots = sys.maxsize  # that memory was found to allow
        self._seats: dict[PackMember, _Seat] = {}
        self._claimed: list[FrozenTrial] = []
        self._alone: list[tuple[FrozenTrial, Configuration]] = []  # which cannot be packed
        self._closed: list[_Entry] = []  # whose runs are over, but not told of yet
        self._noted: set[str] = set()

    def run(self) -> int | None:
        gc_control.resume()
        try:
            with self._ledger.beating(self._claimed):
                self._fill()
                while self._seats or self._alone:
                    self._train_alone()
                    for group in self._packer.groups:
                        self._advance(group)
                    self._tell_closed()
                    if self._is_asked_to_stop():
                        raise Interrupted(self._stop.signum or signal.SIGTERM)
                    self._fill()
        except KeyboardInterrupt as stopped:
            why = stopped if isinstance(stopped, Interrupted) else Interrupted(signal.SIGINT)
            self._give_back([*self._seats.values()], why, resumable=True)
            return self._signum(stopped)
        finally:  # after an error, too
            self._give_back([*self._seats.values()], Interrupted(signal.SIGTERM), resumable=False)
            for trial in self._claimed:
                if self._ledger.is_mine(trial):
                    self._ledger.release(trial)
        return self._signum()

    def _fill(self) -> None:
        """Claims trials for as long as there are free slots for all of their runs, or until one has to train alone."""
        n_runs = self._settings.seeds
        with synced_together():
            is_over = self._patiently(self._is_over)
            while not is_over and not self._alone and (not self._seats or len(self._seats) + n_runs <= self._n_slots):
                trial = self._patiently(lambda: self._ledger.claim(self._worker.n_trials))
                if trial is None:
                    return
                self._claimed.append(trial)
                self._enter(trial)
                if self._closed:
                    self._tell_closed()  # the next trial's sampler may know
                    is_over = self._patiently(self._is_over)
                else:
                    is_over = self._is_asked_to_stop()

    def _enter(self, trial: FrozenTrial) -> None:
        """Seats the trial's runs, unless they have to train alone or have come to their end before."""
        entry = _Entry(trial, self._start(trial))
        try:
            configuration = self._patiently(lambda: self._configure(trial))
            try:
                seats = [
                    self._seat(entry, configuration.groups, self._replicate(place), values)
                    for place, values in enumerate(self._runs(configuration))
                ]
            except Unpackable as why:
                self._note(trial, f"trains alone: {why}")
                self._alone.append((trial, configuration))
                return
            for seat in filter(None, seats):
                self._begin(seat)
        except Exception as error:
            if self._fits_later(entry, error):
                self._most_slots = self._n_slots = len(self._seats) - len(entry.seats)
                self._hand_back([entry], f"out of memory, {self._n_slots} in a pack from now on", error)
                return
            self._end(entry, error)
        if not entry.seats:
            self._closed.append(entry)

    def _train_alone(self) -> None:
        """Trials that cannot be packed; the packs wait."""
        while self._alone:
            trial, configuration = self._alone.pop()
            self._settle(trial, partial(self._train, trial, configuration))
            self._claimed.remove(trial)

    def _seat(
        self, entry: _Entry, groups: Mapping[str, str], replicate: int | None, values: Mapping[str, Any]
    ) -> _Seat | None:
        """A slot for the run, not taken yet; None if it has finished before."""
        trial, settings = entry.trial, self._settings
        run = self._worker.folder.trial(trial.number, replicate)
        composed = partial(self._composer.compose, groups, values)
        if end := ended(run):  # its worker died before it could tell
            raise end
        try:
            if PROBLEM in trial.user_attrs:
                raise RuntimeError(trial.user_attrs[PROBLEM])
            if journal.status(run.journal) == "FINISHED":
                self._finished(entry, replicate, run_values(run, settings.objective, settings.direction))
                return None
            begun = journal.first(run.journal, "start") is not None
            config = self._splits.fit(self._composer.validated(groups, values))
            config = stored_config(run, config) if begun else config
            group, slot = self._packer.slot(config)
            if (state := self._saved_state(run)) is not None:
                if state["losses"]:
                    raise Unpackable("its checkpoint was saved inside an epoch")
                group.pack.load_state_dict(slot, state)
        except (Unpackable, BeingTrained, Damaged):
            raise
        except Exception as error:
            if not self._fits_later(entry, error):
                self._record_failure(run, composed(), error, self._member(trial, replicate))
            raise
        return _Seat(entry, replicate, run, composed, config, group, slot)

    def _saved_state(self, run: RunFolder) -> dict[str, Any] | None:
        """As a trial alone has it: one whose checkpoint is damaged is trained from its beginning."""
        try:
            return saved_state(run)
        except Damaged as error:
            log.warning("warning: %s; it is trained from its beginning", error)
            return None

    def _fits_later(self, entry: _Entry, error: Exception) -> bool:
        """Whether it is for other trials that there is no memory for this one."""
        return is_out_of_memory(error) and len(self._seats) > len(entry.seats)

    def _begin(self, seat: _Seat) -> None:
        """Begins the run's record, and takes the slot."""
        run, config, member = seat.run, seat.config, self._member(seat.entry.trial, seat.replicate)
        output_dir = absolute(config.output_dir)
        store = recorded_uri(tracking_store(config.tracking, output_dir), output_dir)
        data, device = seat.group.data.description, seat.group.pack.device.type
        with told_when_full(run):
            seat.held.enter_context(locked(run))
            attempt = Attempt(run, config, data, output_dir, store, seat.slot, device, member, self._report_of(seat))
        seat.attempt = seat.held.enter_context(attempt)
        seat.slot.listener = attempt.recorder
        if self._settings.pack == "auto":
            self._n_slots = min(max(self._n_slots, seat.group.width), self._most_slots)
        self._seats[seat.slot] = seat
        seat.entry.seats.append(seat)
        seat.group.pack.seat(seat.slot)

    def _report_of(self, seat: _Seat) -> Report:
        entry = seat.entry
        return self._reporter(entry.trial, entry.means, seat.replicate or 0, seat.config.trainer.epochs)

    def _advance(self, group: Group) -> None:
        """One epoch of a pack."""
        seats = [self._seats[slot] for slot in group.pack.members]
        try:
            ended_now, train_s = group.train_epoch()
        except Exception as error:  # not of a single trial: the pass itself
            self._give_up(group, seats, error)
            return
        for seat in seats:
            seat.train_s += train_s
        with synced_together():
            for slot, ending in ended_now.items():
                if slot in self._seats:  # else it left with another run of its trial
                    self._leave(self._seats[slot], ending)
            for slot in group.pack.members:
                if slot.checkpoint_due():
                    self._save(self._seats[slot])

    def _leave(self, seat: _Seat, ending: Exception | None) -> None:
        """The run has come to its end; so has the trial, if it was the last one or came to a bad end."""
        entry, settings = seat.entry, self._settings
        assert seat.attempt is not None
        try:
            with told_when_full(seat.run):
                try:
                    if ending is not None:
                        raise ending
                    test = seat.group.test(seat.slot)
                    seat.attempt.complete(test, seat.group.n_weights, seat.train_s)
                except Exception as error:
                    seat.attempt.end(error, seat.train_s)
                    raise
            self._finished(entry, seat.replicate, run_values(seat.run, settings.objective, settings.direction))
            self._free(seat)
        except (Pruned, Diverged) as error:
            self._free(seat)
            self._end(entry, ended(seat.run) or error)
        except (Damaged, DiskFull) as error:
            self._free(seat)
            self._end(entry, error)
        except Exception as error:
            self._free(seat)
            self._record_failure(seat.run, seat.composed(), error, self._member(entry.trial, seat.replicate))
            self._end(entry, error)
        if not entry.seats:
            self._closed.append(entry)

    def _finished(self, entry: _Entry, replicate: int | None, values: list[float]) -> None:
        place = replicate or 0
        entry.values[place] = values
        entry.means.end(place)

    def _end(self, entry: _Entry, problem: Exception) -> None:
        """Ends the trial's other runs, which are not worth going on with or will go on later."""
        entry.problem = problem
        for seat in [*entry.seats]:
            assert seat.attempt is not None
            ending = Pruned(seat.slot.epoch) if is_pruned(problem) else Interrupted(signal.SIGTERM)
            seat.attempt.end(ending, seat.train_s)
            self._free(seat)

    def _tell_closed(self) -> None:
        """Tells the study what trials have come to, now that their records are on the disk."""
        with synced_together():
            while self._closed:
                entry = self._closed.pop(0)
                self._claimed.remove(entry.trial)
                self._settle(entry.trial, partial(_values, entry))

    def _free(self, seat: _Seat) -> None:
        seat.group.pack.leave(seat.slot)
        seat.held.close()
        del self._seats[seat.slot]
        seat.entry.seats.remove(seat)

    def _save(self, seat: _Seat) -> None:
        assert seat.attempt is not None
        with told_when_full(seat.run):
            seat.attempt.save(seat.group.pack.state_dict(seat.slot))
        seat.slot.saved_at = time.monotonic()

    def _give_up(self, group: Group, seats: list[_Seat], error: Exception) -> None:
        """Hands the pack's trials back, to be trained in smaller packs or alone from where they were last saved."""
        if is_out_of_memory(error) and len(seats) > 1:
            self._most_slots = self._n_slots = len(seats) // 2
            self._packer.forget(group)
            told = f"out of memory with {len(seats)} in a pack, {self._n_slots} from now on"
        else:
            why = Unpackable(one_line(error, 160))
            self._packer.refuse(group, why)
            told = f"trains alone: {why}"
        self._hand_back([*{id(seat.entry): seat.entry for seat in seats}.values()], told, error)

    def _hand_back(self, entries: list[_Entry], told: str, error: Exception) -> None:
        """Trials that come again in a moment, here or to another worker."""
        log.warning("%d trials are handed back: %s", len(entries), told, exc_info=error)
        self._note(entries[0].trial, told)
        for entry in entries:
            self._give_back([*entry.seats], Interrupted(signal.SIGTERM), resumable=False)
            self._claimed.remove(entry.trial)
            self._ledger.release(entry.trial)

    def _give_back(self, seats: list[_Seat], why: Interrupted, resumable: bool) -> None:
        """Leaves the runs for later. resumable: whether their slots are as the last epoch left them."""
        for seat in seats:
            assert seat.attempt is not None
            if resumable:
                with suppress(OSError, DiskFull):
                    self._save(seat)
            seat.attempt.end(why, seat.train_s)
            self._free(seat)

    def _note(self, trial: FrozenTrial, told: str) -> None:
        """Shown once by the command that watches the study."""
        if told not in self._noted:
            self._noted.add(told)
            self._patiently(lambda: self._storage.set_trial_user_attr(trial._trial_id, PACKING, told))


def _values(entry: _Entry) -> list[float]:
    """The trial's objectives; raises what ended it early."""
    if entry.problem is not None:
        raise entry.problem
    return mean_values([*entry.values.values()])
