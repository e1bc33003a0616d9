"""sweep/execution/queue.py: every trial is run by one worker at a time, and none is lost with its worker."""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sweep.execution.queue import HEARTBEAT, OWNER, PROBLEM, REACHED, RETRIES, TrialQueue, is_settled
from sweep.execution.steering import release_stopped, request_stop, requeue
from sweep.storage.lock import StudyLock
from sweep.storage.storage import open_storage
from sweep.tracking.folders import StudyFolder

N_TRIALS = 4


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return begun(tmp_path, StudyDirection.MINIMIZE)


def begun(tmp_path: Path, *directions: StudyDirection) -> StudyFolder:
    folder = StudyFolder(tmp_path / "studies" / "s")
    optuna.create_study(storage=open_storage(None, folder), study_name="s", directions=directions)
    return folder


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def queue_of(folder: StudyFolder, worker: str, clock: Clock | None = None, max_retries: int = 2) -> TrialQueue:
    storage = open_storage(None, folder)
    return TrialQueue(storage, "s", folder, StudyLock(None, folder), worker, max_retries, clock or Clock())


def trials(folder: StudyFolder) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="s", storage=open_storage(None, folder)).get_trials()


def finish(folder: StudyFolder, number: int) -> None:
    optuna.load_study(study_name="s", storage=open_storage(None, folder)).tell(number, 1.0)


_CLAIM_AND_HANG = """
import sys, time
from sweep.tracking.folders import StudyFolder
from sweep.execution.queue import TrialQueue
from sweep.storage.lock import StudyLock
from sweep.storage.storage import open_storage

folder, worker = StudyFolder(sys.argv[1]), sys.argv[2]
storage = open_storage(None, folder)
with folder.worker_lock(worker):
    trial = TrialQueue(storage, "s", folder, StudyLock(None, folder), worker, 2).claim(4)
    if len(sys.argv) > 3:
        storage.set_trial_intermediate_value(trial._trial_id, int(sys.argv[3]), 0.5)
    print(trial.number, flush=True)
    time.sleep(600)
"""


def claim_and_die(folder: StudyFolder, worker: str, *reached: str) -> int:
    """The number that a worker in a process of its own claimed before it was killed."""
    command = [sys.executable, "-c", _CLAIM_AND_HANG, str(folder.path), worker, *reached]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
    return number


def test_workers_share_the_numbers_below_n_trials(folder):
    with ExitStack() as alive:
        for worker in ("a", "b"):
            alive.enter_context(folder.worker_lock(worker))
        a, b = queue_of(folder, "a"), queue_of(folder, "b")
        claimed = [a.claim(N_TRIALS), b.claim(N_TRIALS), a.claim(N_TRIALS), b.claim(N_TRIALS)]
        assert [t.number for t in claimed if t is not None] == [0, 1, 2, 3]
        assert a.claim(N_TRIALS) is None
        assert b.claim(N_TRIALS + 1) is not None  # n_trials was raised


def test_a_trial_that_is_given_back_keeps_its_number_and_is_the_next_to_be_claimed(folder):
    with folder.worker_lock("a"):
        a = queue_of(folder, "a")
        first = a.claim(N_TRIALS)
        assert first is not None
        a.claim(N_TRIALS)
        a.release(first)
        again = a.claim(N_TRIALS)
        assert again is not None
        assert again.number == 0
        assert RETRIES not in again.user_attrs


def test_a_trial_that_was_stopped_alone_waits_until_it_is_queued_again(folder):
    """Its worker, and a command, may end: there is nothing else to train."""
    with folder.worker_lock("a"):
        a = queue_of(folder, "a")
        first = a.claim(1)
        assert first is not None
        request_stop(first, folder)
        assert not is_settled(trials(folder), 1, folder), "its worker has not saved it yet"
        a.release(first)
        assert (a.claim(1), a.has_work(1), is_settled(trials(folder), 1, folder)) == (None, False, True)
        study = optuna.load_study(study_name="s", storage=open_storage(None, folder))
        assert requeue(study, folder, None, [0]) == [0]
        assert a.has_work(1)
        again = a.claim(1)
        assert again is not None
        assert again.number == 0


def test_a_command_that_begins_queues_stopped_trials_again_but_those_that_a_worker_trains(folder):
    with folder.worker_lock("h-0"):
        a = queue_of(folder, "h-0")
        stopped, trained = a.claim(2), a.claim(2)
        assert stopped is not None
        assert trained is not None
        a.release(stopped)
        for trial in (stopped, trained):
            request_stop(trial, folder)
        release_stopped(trials(folder), folder)
        assert [folder.is_stopped(number) for number in (0, 1)] == [False, True]
        assert folder.stopped_trials() == {1}
    release_stopped(trials(folder), folder)
    assert not folder.is_stopped(1), "its worker is dead"


@pytest.mark.process
def test_the_trial_of_a_killed_worker_is_claimed_at_once(folder):
    assert claim_and_die(folder, "dead") == 0
    with folder.worker_lock("a"):
        trial = queue_of(folder, "a").claim(N_TRIALS)
    assert trial is not None
    assert (trial.number, trial.user_attrs[RETRIES]) == (0, 1)
    assert trial.user_attrs[OWNER].endswith("/a")
    assert len(trials(folder)) == 1


@pytest.mark.process
def test_a_trial_whose_workers_die_again_and_again_is_handed_out_to_be_failed(folder):
    for i in range(3):
        assert claim_and_die(folder, f"dead{i}") == 0
    with folder.worker_lock("a"):
        failing = queue_of(folder, "a").claim(N_TRIALS)
    assert failing is not None
    assert failing.number == 0
    assert "died 3 times" in failing.user_attrs[PROBLEM]  # for the worker to record


@pytest.mark.process
@pytest.mark.parametrize("directions", [[StudyDirection.MINIMIZE], [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]])
def test_deaths_between_which_the_trial_gets_further_do_not_add_up(directions, tmp_path):
    folder = begun(tmp_path, *directions)
    for i in range(6):
        assert claim_and_die(folder, f"dead{i}", str(i + 1)) == 0
    (trial,) = trials(folder)
    assert (trial.state, trial.user_attrs[RETRIES], trial.user_attrs[REACHED]) == (TrialState.RUNNING, 1, 5)
    assert PROBLEM not in trial.user_attrs


def test_a_living_worker_of_this_machine_keeps_its_trial_however_silent(folder):
    clock = Clock()
    with folder.worker_lock("a"), folder.worker_lock("b"):
        queue_of(folder, "a").claim(1)
        b = queue_of(folder, "b", clock)
        for clock.now in (0.0, 1e3, 1e6):
            assert b.claim(1) is None


def test_a_worker_of_another_machine_is_dead_once_it_has_been_silent_for_long(folder):
    clock, storage = Clock(), open_storage(None, folder)
    elsewhere = optuna.create_trial(state=TrialState.RUNNING, user_attrs={OWNER: "elsewhere/w", HEARTBEAT: 1})
    trial_id = storage.create_new_trial(storage.get_study_id_from_name("s"), elsewhere)
    with folder.worker_lock("a"):
        a = queue_of(folder, "a", clock)
        for clock.now in (0.0, 60.0, 89.0):
            assert a.claim(1) is None
        storage.set_trial_user_attr(trial_id, HEARTBEAT, 2)
        for clock.now in (100.0, 189.0):
            assert a.claim(1) is None
        clock.now = 191.0
        taken = a.claim(1)
    assert taken is not None
    assert taken.number == 0


def test_a_worker_that_starts_after_another_machine_died_finds_its_trial(folder):
    """The command waited for it, and starts a worker, which has seen no heartbeat stop."""
    clock, storage = Clock(), open_storage(None, folder)
    elsewhere = optuna.create_trial(state=TrialState.RUNNING, user_attrs={OWNER: "elsewhere/w", HEARTBEAT: 1})
    storage.create_new_trial(storage.get_study_id_from_name("s"), elsewhere)
    command = queue_of(folder, "controller", clock)
    for clock.now in (0.0, 60.0, 90.0):
        assert not command.has_work(1)
    clock.now = 91.0
    assert command.has_work(1)
    with folder.worker_lock("a"):
        trial = queue_of(folder, "a", Clock()).claim(1)
    assert trial is not None
    assert (trial.number, trial.user_attrs[RETRIES]) == (0, 1)


def test_a_beat_is_heard_while_a_trial_runs(folder):
    with folder.worker_lock("a"):
        a = queue_of(folder, "a")
        trial = a.claim(N_TRIALS)
        assert trial is not None
        with a.heartbeats([trial], every_s=0.01):
            from waiting import wait_until

            wait_until(lambda: trials(folder)[0].user_attrs.get(HEARTBEAT, 0) >= 2, what="two beats")
        finish(folder, 0)
        with a.heartbeats([trial], every_s=0.01):  # of a trial that is over: no harm
            pass


def test_a_trial_taken_from_a_silent_worker_that_lives_goes_back_to_it(folder):
    clock, storage = Clock(), open_storage(None, folder)
    elsewhere = optuna.create_trial(state=TrialState.RUNNING, user_attrs={OWNER: "elsewhere/w", HEARTBEAT: 1})
    storage.create_new_trial(storage.get_study_id_from_name("s"), elsewhere)
    with folder.worker_lock("a"):
        a = queue_of(folder, "a", clock)
        assert a.claim(1) is None
        clock.now = 91.0
        taken = a.claim(1)
        assert taken is not None
        assert a.is_mine(taken)
        a.return_to_owner(taken)
        assert not a.is_mine(taken)
        assert a.claim(1) is None
    (trial,) = trials(folder)
    assert (trial.state, trial.user_attrs[OWNER]) == (TrialState.RUNNING, "elsewhere/w")


def test_finished_trials_count_and_are_not_claimed_again(folder):
    with folder.worker_lock("a"):
        a = queue_of(folder, "a")
        for number in range(N_TRIALS):
            claimed = a.claim(N_TRIALS)
            assert claimed is not None
            assert claimed.number == number
            finish(folder, number)
        assert a.claim(N_TRIALS) is None
    assert all(t.state == TrialState.COMPLETE for t in trials(folder))
