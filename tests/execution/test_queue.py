"""sweep/execution/queue.py and both queues: each trial has one worker at a time, and none is lost with its worker."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from processes import go_at_once
from sqlalchemy.exc import DBAPIError
from waiting import wait_until

from sweep.execution.attempts import ATTEMPT, NUMBER, numbered
from sweep.execution.database_queue import DatabaseQueue
from sweep.execution.queue import HEARTBEAT, OWNER, PROBLEM, REACHED, RETRIES, TrialQueue
from sweep.execution.steering import release_stopped, request_stop, requeue
from sweep.execution.storage_queue import StorageQueue
from sweep.storage.database import Database
from sweep.storage.lock import StudyLock
from sweep.storage.optuna_internals import trial_id
from sweep.storage.retry import RetryPolicy
from sweep.storage.storage import open_storage
from sweep.study.status import live_workers
from sweep.tracking.folders import StudyFolder
from sweep.utils.errors import ConfigError

N_TRIALS = 4


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Study:
    """The study s, in the storage at `url`."""

    folder: StudyFolder
    url: str | None
    storage: BaseStorage

    def queue(self, worker: str, clock: Clock | None = None, max_retries: int = 2) -> TrialQueue:
        """The queue of a worker in a process of its own: it has a storage of its own."""
        lock, storage = StudyLock(self.url, self.folder), open_storage(self.url, self.folder)
        if self.url is None:
            return StorageQueue(storage, "s", self.folder, lock, worker, max_retries, clock or Clock())
        assert isinstance(storage, Database)
        OPEN.append(storage)
        return DatabaseQueue(storage, "s", self.folder, lock, worker, max_retries, clock or Clock())

    def load(self) -> optuna.Study:
        return optuna.load_study(study_name="s", storage=self.storage)

    def trials(self) -> list[FrozenTrial]:
        return self.load().get_trials()

    def finish(self, number: int) -> None:
        self.load().tell(number, 1.0)

    def begin_elsewhere(self, owner: str = "elsewhere/w", **attrs: Any) -> int:
        """The id of a trial that a worker on another machine trains."""
        trial = optuna.create_trial(state=TrialState.RUNNING, user_attrs={OWNER: owner, **attrs})
        return self.storage.create_new_trial(self.storage.get_study_id_from_name("s"), trial)


OPEN: list[Database] = []


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().engine.dispose()


def begun(tmp_path: Path, url: str | None, *directions: StudyDirection) -> Study:
    folder = StudyFolder(tmp_path / "studies" / "s")
    storage = open_storage(url, folder)
    optuna.create_study(storage=storage, study_name="s", directions=directions or [StudyDirection.MINIMIZE])
    if isinstance(storage, Database):
        OPEN.append(storage)
    return Study(folder, url, storage)


@pytest.fixture
def in_file(tmp_path: Path) -> Study:
    return begun(tmp_path, None)


@pytest.fixture(params=["sqlite", "postgresql"])
def in_database(request: pytest.FixtureRequest, tmp_path: Path) -> Study:
    url = f"sqlite:///{tmp_path}/s.db" if request.param == "sqlite" else request.getfixturevalue("postgresql")
    return begun(tmp_path, url)


@pytest.fixture(params=["file", "sqlite", "postgresql"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Study:
    urls = {"file": None, "sqlite": f"sqlite:///{tmp_path}/s.db"}
    return begun(tmp_path, urls[request.param] if request.param in urls else request.getfixturevalue("postgresql"))


_CLAIM_AND_HANG = """
import sys, time
from sweep.tracking.folders import StudyFolder
from sweep.execution.queues import open_queue
from sweep.storage.storage import open_storage

url, folder, worker = sys.argv[1] or None, StudyFolder(sys.argv[2]), sys.argv[3]
storage = open_storage(url, folder)
with folder.worker_lock(worker):
    trial = open_queue(storage, url, "s", folder, worker, 2).claim(4)
    if len(sys.argv) > 4:
        storage.set_trial_intermediate_value(trial._trial_id, int(sys.argv[4]), 0.5)
    print(trial.number, flush=True)
    time.sleep(600)
"""


def claim_and_die(study: Study, worker: str, *reached: str) -> int:
    """The number that a worker in a process of its own claimed before it was killed."""
    command = [sys.executable, "-c", _CLAIM_AND_HANG, study.url or "", str(study.folder.path), worker, *reached]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
    return number


def test_workers_share_the_numbers_below_n_trials(study):
    with ExitStack() as alive:
        for worker in ("a", "b"):
            alive.enter_context(study.folder.worker_lock(worker))
        a, b = study.queue("a"), study.queue("b")
        claimed = [a.claim(N_TRIALS), b.claim(N_TRIALS), a.claim(N_TRIALS), b.claim(N_TRIALS)]
        assert [t.number for t in claimed if t is not None] == [0, 1, 2, 3]
        assert a.claim(N_TRIALS) is None
        assert b.claim(N_TRIALS + 1) is not None  # n_trials was raised


def test_a_trial_that_is_given_back_keeps_its_number_and_is_the_next_to_be_claimed(study):
    with study.folder.worker_lock("a"):
        a = study.queue("a")
        first = a.claim(N_TRIALS)
        assert first is not None
        a.claim(N_TRIALS)
        a.release(first)
        again = a.claim(N_TRIALS)
        assert again is not None
        assert again.number == 0
        assert RETRIES not in again.user_attrs


def test_a_trial_that_was_stopped_alone_waits_until_it_is_queued_again(study):
    """Its worker, and a command, may end: there is nothing else to train."""
    with study.folder.worker_lock("a"):
        a = study.queue("a")
        first = a.claim(1)
        assert first is not None
        request_stop(first, study.folder)
        assert not a.is_settled(1), "its worker has not saved it yet"
        a.release(first)
        assert (a.claim(1), a.has_work(1), a.is_settled(1)) == (None, False, True)
        assert requeue(study.load(), study.folder, study.url, [0]) == [0]
        assert a.has_work(1)
        again = a.claim(1)
        assert again is not None
        assert again.number == 0


def test_what_is_left_is_counted_alike_in_all_storages(study):
    """Retried trials use up numbers of Optuna's, and the study may have more trials than are asked for."""
    with study.folder.worker_lock("h-0"):
        a = study.queue("h-0")
        assert (a.n_left(3), a.is_settled(3), a.progress(), a.has_begun("h")) == (3, False, (0, 0), False)
        trials = [a.claim(3) for _ in range(3)]
        assert all(trials)
        study.storage.set_trial_intermediate_value(trial_id(trials[0]), 1, 0.5)
        study.finish(0)
        study.load().tell(1, state=TrialState.FAIL)
        assert (a.n_left(3), a.n_left(2), a.n_left(5)) == (1, 0, 3)
        assert requeue(study.load(), study.folder, study.url, [1]) == [1]
        assert (a.n_left(3), a.is_settled(3), a.n_left(1), a.is_settled(1)) == (2, False, 0, True)
        again = a.claim(3)
        study.load().tell(again._trial_id - trials[0]._trial_id, 1.0)
        assert (a.n_left(3), a.n_left(2), a.is_settled(2), a.progress()) == (1, 0, True, (3, 1))
        assert (a.has_begun("h"), a.has_begun("h-0"), a.has_begun("%")) == (True, False, False)
        study.finish(2)
        assert (a.n_left(3), a.is_settled(3), a.is_settled(4)) == (0, True, False)


def test_a_command_that_begins_queues_stopped_trials_again_but_those_that_a_worker_trains(study):
    with study.folder.worker_lock("h-0"):
        a = study.queue("h-0")
        stopped, trained = a.claim(2), a.claim(2)
        assert stopped is not None
        assert trained is not None
        a.release(stopped)
        for trial in (stopped, trained):
            request_stop(trial, study.folder)
        release_stopped(study.trials(), study.folder)
        assert [study.folder.is_stopped(number) for number in (0, 1)] == [False, True]
        assert study.folder.stopped_trials() == {1}
    release_stopped(study.trials(), study.folder)
    assert not study.folder.is_stopped(1), "its worker is dead"


@pytest.mark.process
def test_the_trial_of_a_killed_worker_is_claimed_at_once(study):
    assert claim_and_die(study, "dead") == 0
    with study.folder.worker_lock("a"):
        trial = study.queue("a").claim(N_TRIALS)
    assert trial is not None
    assert (trial.number, trial.user_attrs[RETRIES]) == (0, 1)
    assert trial.user_attrs[OWNER].endswith("/a")
    assert len(study.trials()) == 1


@pytest.mark.process
def test_a_trial_whose_workers_die_again_and_again_is_handed_out_to_be_failed(study):
    for i in range(3):
        assert claim_and_die(study, f"dead{i}") == 0
    with study.folder.worker_lock("a"):
        failing = study.queue("a").claim(N_TRIALS)
    assert failing is not None
    assert failing.number == 0
    assert "died 3 times" in failing.user_attrs[PROBLEM]  # for the worker to record


@pytest.mark.process
@pytest.mark.parametrize("directions", [[StudyDirection.MINIMIZE], [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]])
def test_deaths_between_which_the_trial_gets_further_do_not_add_up(directions, tmp_path):
    study = begun(tmp_path, None, *directions)
    for i in range(6):
        assert claim_and_die(study, f"dead{i}", str(i + 1)) == 0
    (trial,) = study.trials()
    assert (trial.state, trial.user_attrs[RETRIES], trial.user_attrs[REACHED]) == (TrialState.RUNNING, 1, 5)
    assert PROBLEM not in trial.user_attrs


def test_a_living_worker_of_this_machine_keeps_its_trial_however_silent(study):
    clock = Clock()
    with study.folder.worker_lock("a"), study.folder.worker_lock("b"):
        study.queue("a").claim(1)
        b = study.queue("b", clock)
        for clock.now in (0.0, 1e3, 1e6):
            assert b.claim(1) is None


def test_a_worker_of_another_machine_is_dead_once_it_has_been_silent_for_long(in_file):
    clock, trial_id = Clock(), in_file.begin_elsewhere(**{HEARTBEAT: 1})
    with in_file.folder.worker_lock("a"):
        a = in_file.queue("a", clock)
        for clock.now in (0.0, 60.0, 74.0):
            assert a.claim(1) is None
        in_file.storage.set_trial_user_attr(trial_id, HEARTBEAT, 2)
        for clock.now in (100.0, 174.0):
            assert a.claim(1) is None
        clock.now = 176.0
        taken = a.claim(1)
    assert taken is not None
    assert taken.number == 0


def test_a_worker_that_starts_after_another_machine_died_finds_its_trial(in_file):
    """The command waited for it, and starts a worker, which has seen no heartbeat stop."""
    clock = Clock()
    in_file.begin_elsewhere(**{HEARTBEAT: 1})
    command = in_file.queue("controller", clock)
    for clock.now in (0.0, 60.0, 75.0):
        assert not command.has_work(1)
    clock.now = 76.0
    assert command.has_work(1)
    with in_file.folder.worker_lock("a"):
        trial = in_file.queue("a", Clock()).claim(1)
    assert trial is not None
    assert (trial.number, trial.user_attrs[RETRIES]) == (0, 1)


def test_a_beat_is_heard_while_a_trial_runs(in_file):
    with in_file.folder.worker_lock("a"):
        a = in_file.queue("a")
        trial = a.claim(N_TRIALS)
        assert trial is not None
        with a.heartbeats([trial], every_s=0.01):
            wait_until(lambda: in_file.trials()[0].user_attrs.get(HEARTBEAT, 0) >= 2, what="two beats")
        in_file.finish(0)
        with a.heartbeats([trial], every_s=0.01):  # of a trial that is over: no harm
            pass


def test_a_trial_taken_from_a_silent_worker_that_lives_goes_back_to_it(in_file):
    clock = Clock()
    in_file.begin_elsewhere(**{HEARTBEAT: 1})
    with in_file.folder.worker_lock("a"):
        a = in_file.queue("a", clock)
        assert a.claim(1) is None
        clock.now = 76.0
        taken = a.claim(1)
        assert taken is not None
        assert a.is_mine(taken)
        a.return_to_owner(taken)
        assert not a.is_mine(taken)
        assert a.claim(1) is None
    (trial,) = in_file.trials()
    assert (trial.state, trial.user_attrs[OWNER]) == (TrialState.RUNNING, "elsewhere/w")


def test_finished_trials_count_and_are_not_claimed_again(study):
    with study.folder.worker_lock("a"):
        a = study.queue("a")
        for number in range(N_TRIALS):
            claimed = a.claim(N_TRIALS)
            assert claimed is not None
            assert claimed.number == number
            study.finish(number)
        assert a.claim(N_TRIALS) is None
    assert all(t.state == TrialState.COMPLETE for t in study.trials())


def test_a_new_trial_gets_the_next_number_after_others_were_tried_again(study):
    with study.folder.worker_lock("a"):
        a = study.queue("a")
        a.claim(N_TRIALS)
        study.load().tell(0, state=TrialState.FAIL)
        assert requeue(study.load(), study.folder, study.url, [0]) == [0]
        claimed = [a.claim(3) for _ in range(4)]
        assert [trial and (trial.number, trial.user_attrs.get(ATTEMPT, 0)) for trial in claimed] == [
            (0, 1),
            (1, 0),
            (2, 0),
            None,
        ]
        assert [t.number for t in numbered(study.trials())] == [0, 1, 2]
        assert [t.number for t in study.trials()] == [0, 1, 2, 3]


def test_a_worker_releases_no_trial_that_another_has_reclaimed(study):
    with ExitStack() as alive:
        alive.enter_context(study.folder.worker_lock("a"))
        a = study.queue("a")
        with study.folder.worker_lock("b"):
            b = study.queue("b")
            lost = b.claim(1)
        taken = a.claim(1)
        assert lost is not None
        assert taken is not None
        b.release(lost)
        assert a.is_mine(taken)
        study.finish(0)
        b.release(lost)
        a.release(taken)
        assert [t.state for t in study.trials()] == [TrialState.COMPLETE]


class Finishing(StudyFolder):
    """A folder in which a worker ends right before one looks whether it lives: it has finished its trial."""

    study: Study

    def worker_lives(self, worker: str) -> bool | None:
        if worker == "b" and self.study.trials()[0].state == TrialState.RUNNING:
            self.study.finish(0)
            return False
        return super().worker_lives(worker)


@pytest.mark.parametrize("kind", ["file", "postgresql"])  # SQLite has one writer at a time
def test_a_trial_that_is_finished_while_its_worker_is_looked_for_stays_finished(kind, request, tmp_path):
    study = begun(tmp_path, None if kind == "file" else request.getfixturevalue(kind))
    folder = Finishing(study.folder.path)
    folder.study = study
    with study.folder.worker_lock("a"):
        with study.folder.worker_lock("b"):
            study.queue("b").claim(2)
        trial = replace(study, folder=folder).queue("a").claim(2)
    assert trial is not None
    assert trial.number == 1
    first, _ = study.trials()
    assert first.state == TrialState.COMPLETE
    assert RETRIES not in first.user_attrs


def test_a_trial_of_another_machine_or_launch_is_shared(study):
    with study.folder.worker_lock("one-0"), study.folder.worker_lock("one-1"):
        first, sibling = study.queue("one-0"), study.queue("one-1")
        sibling.claim(2)
        assert not first.is_shared(2), "it dies with this worker's launch"
        study.begin_elsewhere()
        assert first.is_shared(2)
        assert not first.is_shared(1), "a larger n_trials has made it"


# Heartbeats in a database


def age(study: Study, seconds: float, worker: str = "w") -> None:
    """Make the last heartbeat of a worker older."""
    with _engine(study).begin() as connection:
        older = f"UPDATE sweep_workers SET heartbeat = heartbeat - {seconds} WHERE worker = '{worker}'"
        assert connection.exec_driver_sql(older).rowcount == 1


def workers(study: Study) -> set[tuple[str, str]]:
    with _engine(study).begin() as connection:
        return {(row[0], row[1]) for row in connection.exec_driver_sql("SELECT host, worker FROM sweep_workers")}


def _engine(study: Study) -> sqlalchemy.Engine:
    assert isinstance(study.storage, Database)
    return study.storage.engine


def test_a_worker_that_has_just_started_knows_how_long_another_has_been_silent(in_database, monkeypatch):
    study = in_database
    with monkeypatch.context() as elsewhere, study.folder.worker_lock("a"):
        elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
        other = study.queue("w")
        trial = other.claim(1)
        elsewhere.undo()
        assert trial is not None
        assert study.queue("a").claim(1) is None
        age(study, 70)
        assert study.queue("a").claim(1) is None
        with other.heartbeats([trial], every_s=0.01):
            wait_until(lambda: not silent(study, 60), what="a heartbeat")
        age(study, 70)
        assert not study.queue("controller").has_work(1)
        age(study, 10)
        assert study.queue("controller").has_work(1)
        taken = study.queue("a").claim(1)
    assert taken is not None
    assert (taken.number, taken.user_attrs[RETRIES]) == (0, 1)
    assert workers(study) == {(socket.gethostname(), "a")}


def silent(study: Study, seconds: float) -> bool:
    """Whether a worker elsewhere has been silent for so long."""
    from sweep.storage.worker_table import WorkerTable

    table = WorkerTable(study.storage.get_study_id_from_name("s"))
    with _engine(study).begin() as connection:
        return any(row.host == "elsewhere" for row in table.of_host_or_silent(connection, "", seconds))


def test_an_owner_from_an_earlier_version_is_watched_from_now_on(in_database):
    study = in_database
    study.begin_elsewhere(**{HEARTBEAT: 7})
    with study.folder.worker_lock("a"):
        assert study.queue("a").claim(1) is None
        assert workers(study) == {("elsewhere", "w"), (socket.gethostname(), "a")}
        age(study, 80)
        assert study.queue("a").claim(1) is not None


def test_a_trial_that_runs_without_an_owner_is_watched_too(in_database):
    study = in_database
    trial = optuna.create_trial(state=TrialState.RUNNING)
    study.storage.create_new_trial(study.storage.get_study_id_from_name("s"), trial)
    with study.folder.worker_lock("a"):
        assert study.queue("a").claim(1) is None
        age(study, 80, "")
        assert study.queue("a").claim(1) is not None


def test_a_removed_study_leaves_no_workers(in_database):
    with in_database.folder.worker_lock("a"):
        in_database.queue("a").claim(1)
    optuna.delete_study(study_name="s", storage=in_database.storage)
    assert workers(in_database) == set()


def test_a_worker_that_starts_again_gets_a_name_that_is_new(in_file):
    """As in a job that Slurm has requeued: its dead predecessor must not look alive."""
    folder = in_file.folder
    names = [folder.new_worker("l-0") for _ in range(3)]
    assert names == ["l-0", "l-0.1", "l-0.2"]
    with folder.worker_lock(names[2]):
        assert [folder.worker_lives(name) for name in names] == [False, False, True]


def test_a_silent_worker_that_lives_gets_its_trial_back(in_database):
    study = in_database
    study.begin_elsewhere()
    with study.folder.worker_lock("a"):
        a = study.queue("a")
        age(study, 80)
        taken = a.claim(1)
        assert taken is not None
        a.return_to_owner(taken)
        assert not a.is_mine(taken)
        assert a.claim(1) is None, "it is not dead at once again"
    (trial,) = study.trials()
    assert (trial.state, trial.user_attrs[OWNER]) == (TrialState.RUNNING, "elsewhere/w")


def test_a_worker_that_could_not_reach_the_database_judges_nobody_for_a_while(in_database):
    """Nobody else could reach it either, perhaps."""
    study, clock = in_database, Clock()
    study.begin_elsewhere()
    with study.folder.worker_lock("a"):
        a = study.queue("a", clock)
        age(study, 80)
        with _engine(study).begin() as connection:
            connection.exec_driver_sql("ALTER TABLE sweep_workers RENAME TO away")
        with pytest.raises(DBAPIError):
            a.claim(1)
        with _engine(study).begin() as connection:
            connection.exec_driver_sql("ALTER TABLE away RENAME TO sweep_workers")
        for clock.now in (0.0, 29.0):
            assert a.claim(1) is None
        clock.now = 31.0
        assert a.claim(1) is not None


def test_a_worker_with_many_trials_has_one_heartbeat(in_database):
    study = in_database
    with study.folder.worker_lock("a"):
        a = study.queue("a")
        trials = [a.claim(5) for _ in range(5)]
        with a.heartbeats([trial for trial in trials if trial is not None], every_s=0.01):
            age(study, 80, "a")
            wait_until(lambda: not old(study), what="a heartbeat")
    assert workers(study) == {(socket.gethostname(), "a")}
    assert not any(HEARTBEAT in trial.user_attrs for trial in study.trials())


def test_workers_that_live_are_shown_with_their_trials_and_heartbeats(study, monkeypatch):
    here = socket.gethostname()
    with study.folder.worker_lock("a"), study.folder.worker_lock("idle"):
        a = study.queue("a")
        trials = [a.claim(3), a.claim(3)]
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
            other = study.queue("w")
            other.claim(3)
        found = live_workers(study.load(), study.folder)
        assert [(w.host, w.name, w.trials) for w in found] == sorted(
            [("elsewhere", "w", [2]), (here, "a", [0, 1]), (here, "idle", [])]
        )
        assert {w.name: w.silent_s is not None for w in found} == {
            "a": study.url is not None,
            "idle": False,
            "w": study.url is not None,
        }
        if study.url is not None:
            age(study, 80)
            assert [w.name for w in live_workers(study.load(), study.folder)] == ["a", "idle"]
            assert ("elsewhere", "w") in workers(study)
            other.leave()
            assert workers(study) == {(here, "a")}
        for trial in trials:
            assert trial is not None
            study.finish(trial.number)
    assert [w.name for w in live_workers(study.load(), study.folder)] == ([] if study.url else ["w"])


def old(study: Study) -> bool:
    from sweep.storage.worker_table import WorkerTable

    table = WorkerTable(study.storage.get_study_id_from_name("s"))
    with _engine(study).begin() as connection:
        return bool(table.of_host_or_silent(connection, "", 60))


def test_a_trial_that_is_tried_again_elsewhere_is_shared(in_database):
    """Its number in Optuna is larger than those of the study."""
    study = in_database
    with study.folder.worker_lock("a"):
        a = study.queue("a")
        trial = a.claim(1)
        assert trial is not None
        study.load().tell(0, state=TrialState.FAIL)
        assert not a.is_shared(1)
        study.begin_elsewhere(**{NUMBER: 0, ATTEMPT: 1})
        assert a.is_shared(1)


def test_a_claim_sees_what_was_claimed_while_it_waited_for_the_lock(postgresql, tmp_path):
    """Also where transactions see by default what they saw first."""
    study = begun(tmp_path, postgresql)
    name = sqlalchemy.make_url(postgresql).database
    with _engine(study).begin() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'repeatable read'")
    a, claimed = study.queue("a"), []
    waiting = threading.Thread(target=lambda: claimed.append(a.claim(N_TRIALS)))
    with study.folder.worker_lock("a"), StudyLock(study.url, study.folder):
        waiting.start()
        wait_until(lambda: _waits_for_lock(study), what="a wait for the lock")
        study.begin_elsewhere()
    waiting.join()
    assert [trial.number for trial in claimed] == [1]


def _waits_for_lock(study: Study) -> bool:
    with _engine(study).begin() as connection:
        found = connection.exec_driver_sql("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return found.first() is not None


def test_a_role_that_may_not_create_our_table_is_told_what_to_do(limited):
    role = sqlalchemy.make_url(limited.url).username
    with _engine(limited).begin() as connection:
        connection.exec_driver_sql("DROP TABLE sweep_workers")
        connection.exec_driver_sql(f"ALTER ROLE {role} CONNECTION LIMIT -1")
    with pytest.raises(ConfigError, match=r"lacks the table sweep_workers, .*permission denied.*GRANT") as caught:
        open_storage(limited.url, limited.folder)
    assert "\n" not in str(caught.value)


@pytest.fixture
def limited(postgresql: str, tmp_path: Path) -> Iterator[Study]:
    """A study in a database that grants its user one connection."""
    study, role = begun(tmp_path, postgresql), f"sweep_test_{secrets.token_hex(6)}"
    rights = f"ALL ON ALL TABLES IN SCHEMA public TO {role}", f"ALL ON ALL SEQUENCES IN SCHEMA public TO {role}"
    with _engine(study).begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1")
        for right in rights:
            connection.exec_driver_sql(f"GRANT {right}")
    url = sqlalchemy.make_url(postgresql).set(username=role).render_as_string(hide_password=False)
    yield replace(study, url=url)
    while len(OPEN) > 1:
        OPEN.pop().engine.dispose()
    with _engine(study).begin() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {role}")
        connection.exec_driver_sql(f"DROP ROLE {role}")


def test_a_worker_needs_one_connection(limited):
    patiently = RetryPolicy(limited.url)  # the server takes a moment to forget a connection that was closed
    with limited.folder.worker_lock("a"):
        a = patiently(lambda: limited.queue("a"))
        with a.heartbeats([], every_s=0.001):
            for number in range(N_TRIALS):
                trial = a.claim(N_TRIALS)
                assert trial is not None
                assert trial.number == number
                OPEN[-1].set_trial_intermediate_value(trial._trial_id, 1, 0.5)
                assert a.is_mine(trial)
                a.release(trial)
                again = a.claim(N_TRIALS)
                assert again is not None
                OPEN[-1].set_trial_state_values(again._trial_id, TrialState.COMPLETE, [0.5])
        assert not a.has_work(N_TRIALS)


def test_the_lock_is_waited_for_while_there_is_no_connection_left(limited):
    storage = RetryPolicy(limited.url)(lambda: open_storage(limited.url, limited.folder))
    assert isinstance(storage, Database)
    storage.get_all_studies()
    lock = StudyLock(limited.url, limited.folder)
    with pytest.raises(ConfigError, match="too many connections"):
        lock.__enter__()
    threading.Timer(0.5, storage.engine.dispose).start()

    def hold() -> str:
        with lock:
            return "held"

    assert RetryPolicy(limited.url)(hold) == "held"


_LIVES = """
import sys
import optuna
from sweep.execution.queues import open_queue
from sweep.storage.optuna_internals import trial_id
from sweep.storage.storage import open_storage
from sweep.tracking.folders import StudyFolder

url, folder, name, n_trials = sys.argv[1] or None, StudyFolder(sys.argv[2]), sys.argv[3], int(sys.argv[4])
optuna.logging.set_verbosity(optuna.logging.WARNING)
storage = open_storage(url, folder)
study = optuna.load_study(study_name="s", storage=storage)
print("ready", flush=True)
sys.stdin.readline()
for life in range(1000):
    with folder.worker_lock(f"{name}-{life}"):  # a worker that ends after each second trial looks dead to the others
        queue = open_queue(storage, url, "s", folder, f"{name}-{life}", 0)
        for _ in range(2):
            trial = queue.claim(n_trials)
            if trial is None:
                sys.exit()
            storage.set_trial_intermediate_value(trial_id(trial), 1, 0.5)
            assert queue.is_mine(trial)
            study.tell(storage.get_trial(trial_id(trial)).number, 0.5)
"""


@pytest.mark.process
def test_workers_that_come_and_go_train_each_trial_once(study):
    """With short trials, one ends now and then between a look at the trials and one at its worker's lock."""
    n_trials = 120
    go_at_once(_LIVES, [[study.url or "", str(study.folder.path), f"w{n}", str(n_trials)] for n in range(4)])
    trials = study.trials()
    assert [t.number for t in trials] == list(range(n_trials))
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    assert not any(RETRIES in t.user_attrs for t in trials), "nobody died"
