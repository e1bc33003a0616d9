"""Short forms of the fault campaigns, and studies on a real PostgreSQL."""

import random
from pathlib import Path

import optuna
from campaigns.kill_study import play
from mlflow import MlflowClient
from optuna.storages import RDBStorage
from processes import error_line, run


def test_a_study_whose_workers_and_controllers_are_killed_ends_with_each_trial_once(tmp_path: Path) -> None:
    killed, problems = play(tmp_path, n_kills=2, rng=random.Random(0))
    assert killed.total() == 2
    assert problems == []


def test_optuna_and_mlflow_in_postgresql_serve_workers_side_by_side(
    postgresql: str, another_postgresql: str, tmp_path: Path
) -> None:
    tracking_uri = another_postgresql.replace("+psycopg", "")
    done = run(
        tmp_path,
        *("-m", "experiment=debug", "hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2"),
        f"hydra.sweeper.storage={postgresql}",
        MLFLOW_TRACKING_URI=tracking_uri,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    storage = RDBStorage(postgresql)
    trials = optuna.load_study(study_name="s", storage=storage).get_trials()
    storage.remove_session()
    storage.engine.dispose()
    assert [t.number for t in trials] == list(range(6))
    assert all(t.state.is_finished() for t in trials)
    store = MlflowClient(tracking_uri)
    runs = store.search_runs([e.experiment_id for e in store.search_experiments()])
    values = {int(r.data.tags["trial"]): r.data.metrics["best/val_loss"] for r in runs if "trial" in r.data.tags}
    assert values == {t.number: t.value for t in trials}


def test_a_database_that_is_mlflows_already_is_refused(postgresql: str, tmp_path: Path) -> None:
    done = run(
        tmp_path,
        *("-m", "experiment=debug", f"hydra.sweeper.storage={postgresql}"),
        MLFLOW_TRACKING_URI=postgresql.replace("+psycopg", ""),
    )
    assert error_line(done).startswith("error: hydra.sweeper.storage: is MLflow's database too")
    assert done.returncode == 2
