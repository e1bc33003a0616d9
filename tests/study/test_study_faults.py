"""Short forms of the fault campaigns, and studies on a real PostgreSQL."""

import gc
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean

import optuna
import pytest
import sqlalchemy
from campaigns.kill_study import Training, play
from mlflow import MlflowClient
from omegaconf import OmegaConf
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from processes import RUN, error_line, make_store, mlflow_runs, quick, quick_side_by_side, quick_start, run
from waiting import wait_until

from sweep import run_study
from sweep.execution.queue import HEARTBEAT, OWNER, RETRIES
from sweep.execution.worker import Worker
from sweep.execution.worker_pool import WorkerPool
from sweep.storage.storage import open_storage
from sweep.study.study_result import StudyResult
from sweep.tracking import journal
from sweep.tracking.folders import StudyFolder
from sweep.utils.errors import ConfigError

pytestmark = pytest.mark.process  # commands, servers, a browser


@pytest.mark.parametrize("training", [Training(), Training.function(saves=True)], ids=["builtin", "function"])
def test_a_study_whose_processes_are_killed_ends_with_each_trial_once(training: Training, tmp_path: Path) -> None:
    killed, problems = play(tmp_path, n_kills=2, rng=random.Random(0), training=training, n_trials=6, n_workers=2)
    assert killed.total() == 2
    assert problems == []


def test_optuna_and_mlflow_in_postgresql_serve_workers_side_by_side(
    postgresql: str, another_postgresql: str, tmp_path: Path
) -> None:
    password = "?password=hush-7b2c"  # which the server does not ask for
    tracking_uri = another_postgresql.replace("+psycopg", "") + password
    quick_side_by_side(
        tmp_path,
        *("-m", "experiment=debug", "hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=6"),
        f"hydra.sweeper.storage='{postgresql}{password}'",
        MLFLOW_TRACKING_URI=tracking_uri,
    )
    trials = trials_in(postgresql)
    assert [t.number for t in trials] == list(range(6))
    assert all(t.state.is_finished() for t in trials)
    store = MlflowClient(tracking_uri)
    runs = store.search_runs([e.experiment_id for e in store.search_experiments()])
    values = {int(r.data.tags["trial"]): r.data.metrics["best/val_loss"] for r in runs if "trial" in r.data.tags}
    assert values == {t.number: t.value for t in trials}
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"hush-7b2c" in path.read_bytes()] == []
    assert "hush-7b2c" not in str([run.to_dictionary() for run in runs])


@pytest.mark.parametrize("pack", [1, 2])
def test_a_worker_waits_while_others_train_and_takes_the_trial_of_a_machine_that_died(
    pack: int, postgresql: str, tmp_path: Path
) -> None:
    """It has seen no heartbeat of it, and all trials are handed out."""
    command = ("-m", "experiment=debug", "tracking=off", "hydra.sweeper.study_name=s", "hydra/sweeper/pruner=none")
    command = (*command, f"hydra.sweeper.storage={postgresql}", f"hydra.sweeper.pack={pack}")
    assert quick(tmp_path, *command, "hydra.sweeper.n_trials=1").returncode == 0
    storage = RDBStorage(postgresql)
    elsewhere = optuna.create_trial(state=TrialState.RUNNING, user_attrs={OWNER: "elsewhere/w-0"})
    storage.create_new_trial(storage.get_study_id_from_name("s"), elsewhere)

    def states() -> list[TrialState]:
        return [trial.state for trial in trials_in(postgresql)]

    with quick_start(tmp_path, *command, "hydra.sweeper.n_trials=3") as process:
        wait_until(lambda: states() == [TrialState.COMPLETE, TrialState.RUNNING, TrialState.COMPLETE], process)
        with storage.engine.begin() as connection:
            older = "UPDATE sweep_workers SET heartbeat = heartbeat - 80 WHERE host = 'elsewhere'"
            assert connection.exec_driver_sql(older).rowcount == 1
        _, err = process.communicate()
    storage.engine.dispose()
    assert (process.returncode, err) == (0, "")
    assert states() == [TrialState.COMPLETE] * 3
    assert [trial.user_attrs.get(RETRIES) for trial in trials_in(postgresql)] == [None, 1, None]


@pytest.mark.parametrize("workers", ["hydra.sweeper.n_jobs=2", "hydra.sweeper.pack=2"])
def test_a_database_that_is_away_for_a_while_costs_no_trial(workers: str, postgresql: str, tmp_path: Path) -> None:
    command = ("-m", "experiment=debug", "tracking=off", "trainer.epochs=40", "data.n=2000", "split.max_samples=2000")
    study = ("hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=4", workers)
    folder = StudyFolder(tmp_path / "outputs" / "studies" / "s")
    with quick_start(tmp_path, *command, *study, f"hydra.sweeper.storage={postgresql}") as process:
        wait_until(lambda: journal.curves(folder.trial(0).journal).get("val/loss") is not None, process)
        with out_of_reach(postgresql):
            time.sleep(3.0)
        _, err = process.communicate()
    assert process.returncode == 0, err
    assert err == ""
    trials = trials_in(postgresql)
    assert [t.number for t in trials] == list(range(4))
    assert all(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials)
    for trial in trials:  # what could not be reported meanwhile was reported later
        losses = journal.curves(folder.trial(trial.number).journal)["val/loss"].values.tolist()
        assert trial.intermediate_values == {e: min(losses[:e]) for e in range(1, len(losses) + 1)}


@pytest.mark.filterwarnings("ignore:.*psycopg.Connection.*was deleted while still open")  # those of Optuna's pools
def test_a_database_that_is_away_as_workers_start_or_end_is_waited_for(
    postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    begin, work = Worker.work, WorkerPool.work

    def study_of(n_trials: int) -> StudyResult:
        base = ["experiment=debug", "tracking=off"]
        return run_study(base, n_trials=n_trials, study_name="s", storage=postgresql)

    def begin_in_an_outage(worker: Worker, index: int = 0) -> int | None:
        begin_outage(postgresql, 0.6)
        return begin(worker, index)

    def work_before_an_outage(pool: WorkerPool) -> int | None:
        signum = work(pool)
        begin_outage(postgresql, 0.6)
        return signum

    monkeypatch.setattr(Worker, "work", begin_in_an_outage)
    monkeypatch.setattr(WorkerPool, "work", work_before_an_outage)
    assert [t.state for t in study_of(2).results] == ["complete", "complete"]

    ends: list[threading.Timer] = []

    def work_until_an_outage(pool: WorkerPool) -> int | None:
        signum = work(pool)
        ends.append(begin_outage(postgresql, 3.0))
        return signum

    monkeypatch.setattr(Worker, "work", begin)
    monkeypatch.setattr(WorkerPool, "work", work_until_an_outage)
    monkeypatch.setattr("sweep.storage.retry._PATIENCE_S", 0.5)
    with pytest.raises(ConfigError, match=r"hydra.sweeper.storage: '.*' cannot be reached .* the same command resumes"):
        study_of(3)
    ends[0].join()
    gc.collect()


def begin_outage(url: str, seconds: float) -> threading.Timer:
    with ExitStack() as stack:
        stack.enter_context(out_of_reach(url))
        end = threading.Timer(seconds, stack.pop_all().close)
        end.start()
        return end


def trials_in(url: str) -> list[FrozenTrial]:
    storage = RDBStorage(url)
    try:
        return optuna.load_study(study_name="s", storage=storage).get_trials()
    finally:
        storage.remove_session()
        storage.engine.dispose()


@contextmanager
def out_of_reach(url: str) -> Iterator[None]:
    """No session of the database lives meanwhile, and none begins."""
    database = sqlalchemy.make_url(url)
    server = sqlalchemy.create_engine(
        database.set(database="test"), isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool
    )
    with server.connect() as session:
        session.exec_driver_sql(f"ALTER DATABASE {database.database} ALLOW_CONNECTIONS false")
        session.exec_driver_sql(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database.database}'"
        )
        try:
            yield
        finally:
            session.exec_driver_sql(f"ALTER DATABASE {database.database} ALLOW_CONNECTIONS true")


def test_the_last_trial_of_a_machine_that_died_is_trained_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sweep.execution.storage_queue.DEAD_AFTER_S", 0.5)
    base = ["experiment=debug", "tracking=off"]
    folder = StudyFolder(run_study(base, n_trials=1, study_name="s").folder)
    storage = open_storage(None, folder)
    elsewhere = optuna.create_trial(state=TrialState.RUNNING, user_attrs={OWNER: "elsewhere/w", HEARTBEAT: 1})
    storage.create_new_trial(storage.get_study_id_from_name("s"), elsewhere)
    trials = run_study(base, n_trials=2, study_name="s").results
    assert [(t.number, t.state) for t in trials] == [(0, "complete"), (1, "complete")]


def test_a_trial_whose_workers_die_too_often_fails_in_optuna_and_in_mlflow(tmp_path: Path) -> None:
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "__init__.py").write_text(_FATAL)
    model = ("model._target_=mypkg.Fatal", "~model.widths", "~model.activation", "~model.dropout", "+model.width=1,2,3")
    done = quick(
        make_store(tmp_path),
        *("-m", "experiment=debug", *model, "hydra/sweeper/sampler=grid", "scheduler=constant", "optimizer.lr=0.1"),
        *("trainer.batch_size=16", "hydra.sweeper.study_name=s", "hydra.sweeper.max_retries=1"),
        *("hydra/launcher=joblib", "hydra.sweeper.n_jobs=2"),
        PYTHONPATH=str(tmp_path),
        SWEEP_TARGETS="mypkg.*",
    )
    assert done.returncode == 0, done.stderr
    folder = StudyFolder(tmp_path / "outputs" / "studies" / "s")
    storage = JournalStorage(JournalFileBackend(str(folder.storage)))
    trials = optuna.load_study(study_name="s", storage=storage).get_trials()
    assert [t.state for t in trials] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL]
    problem = "its worker died 2 times without the trial getting further; out of memory, perhaps"
    assert trials[2].user_attrs["problem"] == problem
    (failed,) = [r for r in mlflow_runs(tmp_path) if r.data.tags.get("trial") == "2"]
    assert (failed.info.status, failed.data.tags["state"]) == ("FAILED", "FAIL")
    assert problem in failed.data.tags["error"]
    assert problem in folder.trial(2).error.read_text()


def test_a_trial_of_several_objectives_that_gets_further_survives_the_deaths_of_its_workers(tmp_path: Path) -> None:
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "__init__.py").write_text(_MORTAL)
    model = ("model._target_=mypkg.Mortal", "~model.widths", "~model.activation", "~model.dropout")
    done = quick(
        tmp_path,
        *("-m", "experiment=debug", "tracking=off", *model, "hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=1"),
        *("trainer.batch_size=16", "trainer.epochs=10", "trainer.checkpoint_interval_s=0", "hydra.sweeper.n_jobs=2"),
        *("hydra.sweeper.objective=[model/n_weights,val/loss]", "hydra.sweeper.max_retries=1"),
        PYTHONPATH=str(tmp_path),
        SWEEP_TARGETS="mypkg.*",
    )
    assert done.returncode == 0, done.stderr
    folder = StudyFolder(tmp_path / "outputs" / "studies" / "s")
    assert sum(record["kind"] == "start" for record, _ in journal.read(folder.trial(0).journal)) >= 3  # lives
    storage = JournalStorage(JournalFileBackend(str(folder.storage)))
    (trial,) = optuna.load_study(study_name="s", storage=storage).get_trials()
    assert trial.state == TrialState.COMPLETE
    assert list(journal.curves(folder.trial(0).journal)["val/loss"].steps) == list(range(1, 11))


_MORTAL = """
import os, signal
from torch import nn

n_updates = 0


class Mortal(nn.Linear):
    def forward(self, x):
        global n_updates
        n_updates += self.training
        if n_updates > 14:  # four epochs of three, and a half
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)
"""


def test_a_full_disk_stops_the_study_and_fails_no_trial(tmp_path: Path) -> None:
    command = ("-m", "experiment=debug", "tracking=off", "model.widths=[64,64]", "trainer.checkpoint_interval_s=0")
    study = ("hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=2")
    folder = StudyFolder(tmp_path / "outputs" / "studies" / "s")
    full = run(tmp_path, *command, *study, command=("prlimit", "--fsize=30000", *RUN))  # less than a checkpoint
    assert error_line(full).startswith("error: output_dir: ")
    assert "make room" in full.stderr
    assert full.returncode == 1
    done = quick(tmp_path, *command, *study)
    assert done.returncode == 0, done.stderr
    storage = JournalStorage(JournalFileBackend(str(folder.storage)))
    trials = optuna.load_study(study_name="s", storage=storage).get_trials()
    assert [t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials] == [True, True]


def test_a_pruned_parallel_resumed_study_finds_as_good_a_value_as_one_trial_after_the_other(tmp_path: Path) -> None:
    """Within 10 %, in as many epochs, on average over three seeds: which trial sees which differs from time to time."""
    ratios = []
    for seed in range(3):
        search = (
            *("-m", "tracking=off", "data.n=500", "trainer.epochs=16", "optimizer=sgd,adam"),
            *(f"hydra.sweeper.sampler.seed={seed}", "hydra.sweeper.defaults_first=false"),
        )
        whole, fast = tmp_path / f"whole{seed}", tmp_path / f"fast{seed}"
        for cwd in (whole, fast):
            cwd.mkdir()
        sequential = quick(whole, *search, "hydra/sweeper/pruner=none", "hydra.sweeper.n_trials=12")
        assert sequential.returncode == 0, sequential.stderr
        for n_trials, n_at_once in ((8, 1), (24, 2)):
            quick_side_by_side(fast, *search, f"hydra.sweeper.n_trials={n_trials}", n=n_at_once)
        assert n_epochs(fast) <= n_epochs(whole) == 12 * 16
        ratios.append(best_value(fast) / best_value(whole))
    assert fmean(ratios) <= 1.1, ratios


def n_epochs(cwd: Path) -> int:
    """That all trials below the folder were trained for."""
    curves = [journal.curves(path)["val/loss"] for path in cwd.glob("outputs/studies/*/trials/*/journal.jsonl")]
    return sum(len(curve.steps) for curve in curves)


def best_value(cwd: Path) -> float:
    (results,) = cwd.glob("outputs/studies/*/optimization_results.yaml")
    return OmegaConf.load(results).best_value


_FATAL = """
import os, signal, time
from pathlib import Path
from torch import nn


class Fatal(nn.Linear):
    def __init__(self, in_features: int, out_features: int, width: int):
        super().__init__(in_features, out_features)
        self.width = width

    def forward(self, x):
        if self.training and self.width == 3:
            journals = [Path(f"outputs/studies/s/trials/{number}/journal.jsonl") for number in (0, 1)]
            while not all(journal.is_file() and '"kind": "end"' in journal.read_text() for journal in journals):
                time.sleep(0.05)  # joblib ends all its workers when one dies
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is short
        return super().forward(x)
"""


def test_a_database_that_is_mlflows_already_is_refused(postgresql: str, tmp_path: Path) -> None:
    done = quick(
        tmp_path,
        *("-m", "experiment=debug", f"hydra.sweeper.storage={postgresql}"),
        MLFLOW_TRACKING_URI=postgresql.replace("+psycopg", ""),
    )
    assert error_line(done).startswith("error: hydra.sweeper.storage: is MLflow's database too")
    assert done.returncode == 2
