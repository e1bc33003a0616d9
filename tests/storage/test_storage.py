"""sweep/storage/storage.py: what a study's processes wrote stays, whatever happens to them; its lock is held by one."""

import json
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState
from waiting import wait_until

from sweep.storage.journal_file import JournalFile
from sweep.storage.lock import StudyLock
from sweep.storage.storage import open_storage, open_to_read
from sweep.storage.url import recorded_url
from sweep.tracking.folders import StudyFolder
from sweep.utils.errors import ConfigError

_TIMEOUT_S = 100


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "optuna.log"


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "studies" / "first")


def opened(path: Path) -> JournalStorage:
    return JournalStorage(JournalFile(path))


def opened_by_optuna(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path)))


def content(storage: BaseStorage, *, dates: bool = True) -> list[str]:
    """All there is to know of a storage, comparable even where there is NaN."""
    known: list[str] = []
    for study in storage.get_all_studies():
        known.append(repr((study.study_name, study.directions, study.user_attrs, study.system_attrs)))
        for trial in storage.get_all_trials(study._study_id):
            if not dates:
                trial.datetime_start = trial.datetime_complete = None
            known.append(repr(trial))
    return known


def run_trials(storage: BaseStorage, n: int) -> None:
    study = optuna.create_study(study_name="s", storage=storage, load_if_exists=True)
    for _ in range(n):
        trial = study.ask()
        value = trial.suggest_float("x", 0, 1)
        trial.report(value, step=1)
        trial.set_user_attr("name", "größer\n")
        study.tell(trial, value)


def finished(storage: BaseStorage) -> dict[int, float]:
    """Values by trial."""
    trials = storage.get_all_trials(storage.get_study_id_from_name("s"))
    return {t.number: t.params["x"] for t in trials if t.state == TrialState.COMPLETE and t.value == t.params["x"]}


_BEGIN_TOGETHER = """
import sys
import optuna
from sweep.tracking.folders import StudyFolder
from sweep.storage.lock import StudyLock
from sweep.storage.storage import open_storage
optuna.logging.set_verbosity(optuna.logging.WARNING)
url, folder = sys.argv[1] or None, StudyFolder(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
"""

_RUN_TRIALS = """
storage = open_storage(url, folder)
sampler = optuna.samplers.RandomSampler()
study = optuna.create_study(study_name="s", storage=storage, load_if_exists=True, sampler=sampler)
for _ in range(int(sys.argv[3])):
    trial = study.ask()
    value = trial.suggest_float("x", 0, 1)
    trial.report(value, step=1)
    trial.set_user_attr("long", "x" * int(sys.argv[4]))
    study.tell(trial, value)
    print(trial.number, value, flush=True)
"""


def start(script: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _BEGIN_TOGETHER + script, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def let_begin(processes: list[subprocess.Popen[str]]) -> None:
    """Waits until all are there, then lets them go at once."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def run_together(n_processes: int, script: str, *args: object) -> list[str]:
    """What each of them printed."""
    processes = [start(script, *args) for _ in range(n_processes)]
    let_begin(processes)
    outputs = [process.communicate(timeout=_TIMEOUT_S) for process in processes]
    assert [(process.returncode, err) for process, (_, err) in zip(processes, outputs, strict=True)] == [
        (0, "")
    ] * n_processes
    return [out for out, _ in outputs]


def told(outputs: list[str]) -> dict[int, float]:
    """Values by trial, as the processes that ran them printed them; none was run twice."""
    lines = [line.split() for output in outputs for line in output.splitlines()]
    values = {int(number): float(value) for number, value in lines}
    assert len(values) == len(lines)
    return values


# The journal


@pytest.mark.slow
def test_a_torn_last_line_costs_only_itself_wherever_it_is_torn(path: Path) -> None:
    run_trials(opened(path), 2)
    whole = path.read_bytes()
    logs = [json.loads(line) for line in whole.splitlines()]
    again = {"op_code": 7, "worker_id": "again"}
    for n_bytes in range(len(whole)):
        path.write_bytes(whole[:n_bytes])
        kept = logs[: whole[:n_bytes].count(b"\n")]
        assert list(JournalFile(path).read_logs(0)) == kept
        JournalFile(path).append_logs([again])
        assert list(JournalFile(path).read_logs(0)) == [*kept, again], "the torn line would have swallowed the new one"


def test_a_study_goes_on_behind_a_torn_line(path: Path) -> None:
    run_trials(opened(path), 3)
    before = finished(opened(path))
    whole = path.read_bytes()
    last_line = whole.splitlines(keepends=True)[-1]
    for torn in (last_line[:-1], last_line[:30], b"\0" * 100):
        path.write_bytes(whole + torn)
        run_trials(opened(path), 1)
        assert {number: finished(opened(path))[number] for number in before} == before
        assert list(finished(opened(path))) == [0, 1, 2, 3]
        assert content(opened_by_optuna(path)) == content(opened(path))


def test_a_line_still_being_written_is_read_once_it_is_whole(path: Path) -> None:
    run_trials(opened(path), 1)
    reader = JournalFile(path)
    n = len(list(reader.read_logs(0)))
    line = json.dumps({"op_code": 7, "step": 1})
    with open(path, "a") as file:
        for piece in (line[:9], line[9:]):  # at last a whole object, but its line has not ended
            file.write(piece)
            file.flush()
            assert list(reader.read_logs(n)) == []
        file.write("\n")
    assert list(reader.read_logs(n)) == [json.loads(line)]
    assert list(reader.read_logs(n + 1)) == []
    assert len(list(reader.read_logs(0))) == n + 1


def test_no_stale_lock_file_is_waited_for(path: Path) -> None:
    Path(f"{path}.lock").symlink_to(path)  # Optuna's own backend would wait for 30 s
    run_trials(opened(path), 2)
    assert list(finished(opened(path))) == [0, 1]


def test_optuna_reads_and_continues_our_file_and_we_theirs(path: Path) -> None:
    run_trials(opened(path), 2)
    assert content(opened_by_optuna(path)) == content(opened(path))
    ours = opened(path)
    run_trials(opened_by_optuna(path), 2)
    assert list(finished(ours)) == [0, 1, 2, 3]
    run_trials(ours, 1)
    assert content(opened_by_optuna(path)) == content(ours)


@pytest.mark.process
def test_eight_processes_on_one_file_share_out_the_numbers(path: Path, folder: StudyFolder) -> None:
    values = told(run_together(8, _RUN_TRIALS, path, folder.path, 30, 10))
    assert sorted(values) == list(range(240))
    assert finished(opened(path)) == values
    assert finished(opened_by_optuna(path)) == values


@pytest.mark.process
def test_no_finished_trial_is_lost_to_kill_9(path: Path, folder: StudyFolder) -> None:
    printed = []
    for n_before_the_kill in (3, 8):
        writers = [start(_RUN_TRIALS, path, folder.path, 10_000, 300_000) for _ in range(3)]  # lines of many writes
        let_begin(writers)
        for writer in writers:
            assert writer.stdout is not None
            printed += [writer.stdout.readline() for _ in range(n_before_the_kill)]
            writer.kill()
        printed += [writer.communicate()[0] for writer in writers]
    values = told(["".join(printed).rpartition("\n")[0]])
    assert len(values) >= 33
    found = finished(opened(path))
    assert {number: found.get(number) for number in values} == values
    run_trials(opened(path), 1)
    assert len(finished(opened_by_optuna(path))) == len(found) + 1


def test_a_damaged_line_is_named(path: Path, folder: StudyFolder) -> None:
    run_trials(opened(path), 2)
    lines = path.read_bytes().splitlines(keepends=True)
    for damaged in (lines[3][:20] + b"\n", lines[3][:20] + lines[3], b"\0" * 50 + b"\n", b"{}\n", b"\xff\n"):
        path.write_bytes(b"".join([*lines[:3], damaged, *lines[4:]]))
        with pytest.raises(ConfigError) as error:
            open_storage(str(path), folder)
        assert f"line 4 of '{path}' is damaged" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["no line at all", "a,b\n1,2\n", '{"kind": "start"}\n', "[1]\n", "SQLite format 3\0"])
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(text: str, path: Path, folder: StudyFolder) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not an Optuna journal"):
        open_storage(str(path), folder)
    assert path.read_text() == text


def test_a_file_without_a_line_is_not_cut_off_for_an_append(path: Path) -> None:
    path.write_text("no line at all")
    with pytest.raises(ConfigError, match="is not an Optuna journal"):
        JournalFile(path).append_logs([{"op_code": 7}])
    assert path.read_text() == "no line at all"


@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 0), Path.unlink])
def test_a_file_that_is_lost_while_in_use_is_not_begun_anew(change: Callable[[Path], None], path: Path) -> None:
    storage = opened(path)
    run_trials(storage, 1)
    change(path)
    with pytest.raises(ConfigError, match=r"was cut or replaced|cannot open|is gone"):
        run_trials(storage, 1)
    assert not path.exists() or path.stat().st_size == 0


_FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
study = optuna.create_study(study_name="s", storage=open_storage(url, folder))
try:
    while True:
        trial = study.ask()
        value = trial.suggest_float("x", 0, 1)
        trial.set_user_attr("long", "x" * 700)
        study.tell(trial, value)
        print(trial.number, value, flush=True)
except OSError as error:
    assert error.errno == 27, error
for logs in ([{"op_code": 7}, {"op_code": 7, "long": "x" * 20_000}], [{"op_code": 6, "long": "x" * 20_000}]):
    try:
        study._storage._backend.append_logs(logs)
    except OSError as error:
        continue
    raise AssertionError
"""


@pytest.mark.process
def test_a_full_disk_leaves_a_file_that_goes_on(path: Path, folder: StudyFolder) -> None:
    values = told(run_together(1, _FULL_DISK, path, folder.path))
    assert len(values) > 5
    assert path.read_bytes().endswith(b"\n")
    assert path.read_bytes().rstrip(b" \t\n").endswith(b"}")  # a checksum in spaces and tabs follows each record
    assert finished(opened_by_optuna(path)) == values == finished(opened(path))
    run_trials(opened(path), 1)
    assert len(finished(opened(path))) == len(values) + 1


_ATTRS = st.recursive(st.none() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2))
_KEYS = st.sampled_from(["a", "ä\n"])
_OPERATIONS = st.one_of(
    st.tuples(st.just("create_new_trial")),
    st.tuples(st.just("set_trial_param"), _KEYS, st.floats(0, 1)),
    st.tuples(
        st.just("set_trial_state_values"), st.sampled_from(TrialState), st.none() | st.lists(st.floats(), max_size=2)
    ),
    st.tuples(st.just("set_trial_intermediate_value"), st.integers(0, 9), st.floats()),
    st.tuples(st.just("set_trial_user_attr"), _KEYS, _ATTRS),
    st.tuples(st.just("set_trial_system_attr"), _KEYS, _ATTRS),
    st.tuples(st.just("set_study_user_attr"), _KEYS, _ATTRS),
    st.tuples(st.just("set_study_system_attr"), _KEYS, _ATTRS),
)


def outcome(storage: BaseStorage, operation: tuple[Any, ...], trial_id: int) -> Any:
    """What it returns, or the type of what it raises."""
    name, *args = operation
    if name == "set_trial_param":
        args.append(FloatDistribution(0, 1))
    try:
        return getattr(storage, name)(trial_id if name.startswith("set_trial") else 0, *args)
    except Exception as error:
        return type(error)


@pytest.mark.slow
@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), _OPERATIONS), max_size=25))
def test_a_file_holds_what_a_storage_in_memory_would(steps: list[tuple[int, int, tuple[Any, ...]]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "optuna.log"
        ours, memory = [opened(path), opened(path)], InMemoryStorage()
        for storage in (ours[0], memory):
            storage.create_new_study([StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE], "s")
            storage.create_new_trial(0)
        for which, trial, operation in steps:
            trial_id = trial % memory.get_n_trials(0)
            assert repr(outcome(ours[which], operation, trial_id)) == repr(outcome(memory, operation, trial_id))
        assert content(ours[0], dates=False) == content(memory, dates=False)
        for storage in (ours[1], opened(path), opened_by_optuna(path), pickle.loads(pickle.dumps(ours[0]))):
            assert content(storage) == content(ours[0])


def test_a_pickled_storage_goes_on_with_the_same_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    storage = opened(Path(path.name))
    run_trials(storage, 1)
    monkeypatch.chdir("/")
    run_trials(pickle.loads(pickle.dumps(storage)), 1)
    assert list(finished(storage)) == [0, 1]


# Storages by URL


@pytest.mark.parametrize("url", ["~/a.log", "sqlite:///~/a.db"])
def test_a_path_may_begin_with_the_home_directory(
    url: str, tmp_path: Path, folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    open_storage(url, folder).create_new_study([StudyDirection.MINIMIZE], "it")
    assert (tmp_path / "home" / url.rpartition("/")[2]).is_file()
    assert open_to_read(url).get_all_studies()[0].study_name == "it"
    assert recorded_url(url) == url.replace("~", str(tmp_path / "home"))
    assert not (tmp_path / "~").exists()


def test_without_a_url_the_study_is_in_its_folder(folder: StudyFolder) -> None:
    run_trials(open_storage(None, folder), 1)
    assert list(finished(opened_by_optuna(folder.storage))) == [0]


@pytest.mark.process
def test_eight_processes_begin_and_share_one_sqlite_file(tmp_path: Path, folder: StudyFolder) -> None:
    (tmp_path / "new").mkdir()
    url = f"sqlite:///{tmp_path}/new/{{study}}.db"
    values = told(run_together(8, _RUN_TRIALS, url, folder.path, 3, 10))
    assert sorted(values) == list(range(24))
    with database(url, folder) as storage:
        assert finished(storage) == values


@contextmanager
def database(url: str, folder: StudyFolder) -> Iterator[BaseStorage]:
    with used(open_storage(url, folder)) as storage:
        yield storage


@contextmanager
def used(storage: BaseStorage) -> Iterator[BaseStorage]:
    assert isinstance(storage, _CachedStorage)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage._backend.engine.dispose()  # psycopg warns of connections that nobody closed


@pytest.mark.process
def test_processes_that_find_an_empty_postgresql_at_once_share_the_study(postgresql: str, folder: StudyFolder) -> None:
    values = told(run_together(3, _RUN_TRIALS, postgresql, folder.path, 4, 10))
    assert sorted(values) == list(range(12))
    with database(postgresql, folder) as storage:
        assert finished(storage) == values


@pytest.mark.process
def test_reading_a_postgresql_makes_nothing_in_it(postgresql: str, folder: StudyFolder) -> None:
    engine = sqlalchemy.create_engine(postgresql, poolclass=sqlalchemy.NullPool)
    with pytest.raises(ConfigError, match="is not an Optuna storage"):
        open_to_read(postgresql)
    assert sqlalchemy.inspect(engine).get_table_names() == []
    with database(postgresql, folder) as storage, used(open_to_read(postgresql)) as to_read:
        study = optuna.create_study(study_name="s", storage=storage)
        study.add_trial(optuna.create_trial(value=1.0))
        read = optuna.load_study(study_name="s", storage=to_read)
        assert [t.value for t in read.get_trials()] == [1.0]
        with pytest.raises(StorageInternalError):
            read.set_user_attr("mine", True)
        assert "mine" not in study.user_attrs


@pytest.mark.process
@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])
def test_a_postgresql_url_needs_no_driver(driver: str, postgresql: str, folder: StudyFolder) -> None:
    with database(postgresql.replace("postgresql+psycopg", driver), folder) as storage:
        run_trials(storage, 1)
        assert list(finished(storage)) == [0]


@pytest.mark.process
def test_a_restart_of_postgresql_between_two_trials_is_survived(postgresql: str, folder: StudyFolder) -> None:
    with database(postgresql, folder) as storage:
        run_trials(storage, 1)
        end_sessions(postgresql)
        run_trials(storage, 1)
        assert list(finished(storage)) == [0, 1]


def end_sessions(url: str) -> int:
    """Ends every session on the database, as a restart of the server does; returns how many there were."""
    others = "pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        return len(connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid) FROM {others}").all())


# The lock


@pytest.fixture(params=["file", "postgresql"])
def lockable(request: pytest.FixtureRequest) -> str:
    """A storage's URL, "" for the embedded one."""
    return request.getfixturevalue("postgresql") if request.param == "postgresql" else ""


_COUNT = """
from pathlib import Path
lock, counter = StudyLock(url, folder), Path(sys.argv[3])
for _ in range(25):
    with lock:
        n = int(counter.read_text())
        counter.write_text("")
        counter.write_text(str(n + 1))
"""


@pytest.mark.process
def test_the_lock_excludes_processes(lockable: str, folder: StudyFolder, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    run_together(3, _COUNT, lockable, folder.path, counter)
    assert counter.read_text() == "75"


_ELSEWHERE = "import os; folder = StudyFolder(folder.path.parent / str(os.getpid()) / 's')\n"


@pytest.mark.process
@pytest.mark.parametrize("kind", ["sqlite", "journal", "postgresql"])
def test_processes_with_folders_of_their_own_that_share_a_storage_share_its_lock(
    kind: str, request: pytest.FixtureRequest, folder: StudyFolder, tmp_path: Path
) -> None:
    """Without it, two commands on one SQLite database now and then began one trial too many."""
    files = {"sqlite": f"sqlite:///{tmp_path}/optuna.db", "journal": f"{tmp_path}/optuna.log"}
    url = files.get(kind) or request.getfixturevalue("postgresql")
    counter = tmp_path / "counter"
    counter.write_text("0")
    run_together(3, _ELSEWHERE + _COUNT, url, folder.path, counter)
    assert counter.read_text() == "75"


_FORK = """
import os
from pathlib import Path
lock, counter = StudyLock(url, folder), Path(sys.argv[3])
with lock:  # a session that the forked process must leave alone
    pass
other, own = os.pipe()
child = os.fork()
if child:
    os.read(other, 1)
else:
    os.write(own, b"x")
for _ in range(100):
    with lock:
        counter.write_text(str(int(counter.read_text()) + 1))
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.process
def test_the_lock_excludes_a_forked_process(lockable: str, folder: StudyFolder, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    run_together(1, _FORK, lockable, folder.path, counter)
    assert counter.read_text() == "200"


@pytest.mark.process
def test_the_lock_excludes_threads_and_survives_pickling(lockable: str, folder: StudyFolder) -> None:
    lock = StudyLock(lockable or None, folder)
    with lock:
        pass
    counter = folder.path.parent / "counter"
    counter.parent.mkdir(exist_ok=True)
    counter.write_text("0")

    def count() -> None:
        own = pickle.loads(pickle.dumps(lock))
        for _ in range(15):
            with own:
                counter.write_text(str(int(counter.read_text()) + 1))

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.read_text() == "45"


_HOLD = """
with StudyLock(url, folder):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.process
def test_a_process_that_is_killed_gives_the_lock_back(lockable: str, folder: StudyFolder) -> None:
    holder, waiter = start(_HOLD, lockable, folder.path), start(_HOLD, lockable, folder.path)
    let_begin([holder])
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    let_begin([waiter])
    holder.send_signal(signal.SIGKILL)
    assert waiter.communicate("\n", timeout=_TIMEOUT_S) == ("held\n", "")
    holder.communicate()


@pytest.mark.process
def test_an_error_inside_gives_the_lock_back(lockable: str, folder: StudyFolder) -> None:
    with pytest.raises(KeyError), StudyLock(lockable or None, folder):
        raise KeyError
    assert run_together(1, "with StudyLock(url, folder): print('held')", lockable, folder.path) == ["held\n"]


@pytest.mark.process
def test_two_studies_in_one_database_do_not_wait_for_each_other(postgresql: str, tmp_path: Path) -> None:
    with StudyLock(postgresql, StudyFolder(tmp_path / "a")), StudyLock(postgresql, StudyFolder(tmp_path / "b")):
        pass


@pytest.mark.process
def test_tables_are_made_while_the_study_is_locked(lockable: str, folder: StudyFolder) -> None:
    with StudyLock(lockable or None, folder):
        assert run_together(1, "open_storage(url, folder)", lockable, folder.path) == [""]


@pytest.mark.process
def test_the_lock_is_had_again_after_a_restart_of_postgresql(postgresql: str, folder: StudyFolder) -> None:
    lock = StudyLock(postgresql, folder)
    with lock:
        assert end_sessions(postgresql) == 1
    with lock:
        pass
    assert end_sessions(postgresql) == 0, "the connection is closed with the lock"


# Errors


def refused(url: str, folder: StudyFolder) -> str:
    """The one line that a user sees."""
    with pytest.raises(ConfigError) as error:
        open_storage(url, folder)
    line = str(error.value)
    assert line.startswith("hydra.sweeper.storage: ")
    assert "\n" not in line
    assert "hush" not in line
    return line


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgres://me:hush@host/db", "an unknown kind; choose a path, sqlite:///path, postgresql+psycopg://"),
        ("mysql+pymysql://me:hush@host/db", "an unknown kind; choose a path, sqlite:///path, postgresql+psycopg://"),
        ("redis://host:6379/0", "'redis://host:6379/0' is of an unknown kind"),
        ("s3://bucket/study", "'s3://bucket/study' is of an unknown kind"),
        ("postgresql+psycopg://me:hush@127.0.0.1:1/db", "'postgresql+psycopg://me:***@127.0.0.1:1/db' cannot be used"),
        ("postgresql+psycopg://127.0.0.1:1/db?password=hush", "refused"),
        ("postgresql+psycopg://me:hu/hush@127.0.0.1:1/db", "me:***@127.0.0.1:1/db' cannot be used"),
        ("postgresql+psycopg://me:an@hush@127.0.0.1:1/db", "write those of the password as %40"),
        ("postgresql+psycopg://me:hush@127.0.0.1:port/db", "me:***@127.0.0.1:port/db' cannot be used"),
        (
            "postgresql+psycopg2cffi://me:hush@host/db",
            "needs a package: No module named 'psycopg2cffi'; pip install 'hydra-sweep[",
        ),
        ("postgresql+none://me:hush@host/db", "cannot be used"),
        ("postgresql:/host", "cannot be used"),
        ("grpc://127.0.0.1:1", "refused"),
        ("grpc://127.0.0.1", "write grpc://host:port"),
        ("sqlite://", "lives in one process only"),
        ("sqlite:///:memory:", "lives in one process only"),
        ("sqlite:///{tmp}/a_file/study.db", "Not a directory"),
        ("sqlite:///{tmp}/x?y.db", "is cut at its '?', which begins settings; name a file without one"),
        ("sqlite:///{tmp}/a_file", "file is not a database"),
        ("sqlite:///{tmp}", "unable to open database file"),
        ("{tmp}/study.db", "for SQLite write sqlite:///{tmp}/study.db"),
        ("{tmp}/a_file/optuna.log", "cannot open '{tmp}/a_file/optuna.log': Not a directory"),
        ("{tmp}", "Is a directory"),
        ("/dev/null", "'/dev/null' is not a file"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(url: str, words: str, tmp_path: Path, folder: StudyFolder) -> None:
    (tmp_path / "a_file").write_text("not a database, " * 100)
    assert words.replace("{tmp}", str(tmp_path)) in refused(url.replace("{tmp}", str(tmp_path)), folder)


@pytest.mark.process
@pytest.mark.parametrize("change", [{"database": "sweep_test_none"}, {"username": "sweep_none", "password": "hush"}])
def test_what_postgresql_refuses_is_told_in_one_line(
    change: dict[str, Any], postgresql: str, folder: StudyFolder
) -> None:
    url = sqlalchemy.make_url(postgresql).set(**change).render_as_string(hide_password=False)
    assert "does not exist" in refused(url, folder)
    with pytest.raises(ConfigError, match="does not exist"), StudyLock(url, folder):
        pass


@pytest.mark.slow
def test_a_server_that_never_answers_is_not_waited_for(folder: StudyFolder) -> None:
    pytest.importorskip("psycopg")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"postgresql+psycopg://127.0.0.1:{mute.getsockname()[1]}/test?connect_timeout=2"
        assert "timeout expired" in refused(url, folder)


_GRPC = """
from optuna.storages import InMemoryStorage, run_grpc_proxy_server
run_grpc_proxy_server(InMemoryStorage(), host="127.0.0.1", port=int(sys.argv[3]))
"""


@pytest.mark.process
def test_a_grpc_proxy_is_spoken_to(folder: StudyFolder) -> None:
    pytest.importorskip("grpc")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start(_GRPC, "", folder.path, port)
    let_begin([server])
    wait_until(lambda: answers(port), what="the gRPC proxy")
    storage = open_storage(f"grpc://127.0.0.1:{port}", folder)
    run_trials(storage, 2)
    assert list(finished(storage)) == [0, 1]
    server.kill()
    server.communicate()


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bits_are_found(seed: int, path: Path, folder: StudyFolder) -> None:
    run_trials(opened(path), 2)
    drawn, data = random.Random(seed), bytearray(path.read_bytes())
    for place in drawn.sample(range(len(data)), 1 + seed % 10):
        data[place] ^= 1 << drawn.randrange(8)
    path.write_bytes(data)
    with pytest.raises(ConfigError) as error:
        open_storage(str(path), folder)
    assert f"of '{path}' is damaged" in str(error.value) or "is not an Optuna journal" in str(error.value)


def test_a_line_that_stands_twice_is_found_and_one_that_is_lost(path: Path, folder: StudyFolder) -> None:
    run_trials(opened(path), 2)
    lines = path.read_bytes().splitlines(keepends=True)
    for others in ([*lines[:4], lines[3], *lines[4:]], [*lines[:4], *lines[5:]]):
        path.write_bytes(b"".join(others))
        with pytest.raises(ConfigError, match=f"line 5 of '{path}' is damaged"):
            open_storage(str(path), folder)


def test_a_damaged_file_of_the_study_itself_is_named_and_no_key_is_blamed_that_nobody_set(folder: StudyFolder) -> None:
    run_trials(open_storage(None, folder), 1)
    data = bytearray(folder.storage.read_bytes())
    data[len(data) // 2] ^= 4
    folder.storage.write_bytes(data)
    with pytest.raises(ConfigError) as error:
        open_storage(None, folder)
    assert error.value.key == "hydra.sweeper.study_name"
    assert str(folder.storage) in error.value.problem


def test_a_folder_that_is_removed_while_in_use_is_named(tmp_path: Path) -> None:
    (tmp_path / "studies" / "s").mkdir(parents=True)
    file = JournalFile(tmp_path / "studies" / "s" / "optuna.log")
    shutil.rmtree(tmp_path / "studies")
    with pytest.raises(ConfigError, match="is gone: it was removed while the study used it") as caught:
        list(file.read_logs(0))
    assert caught.value.key == "study"
