"""sweep/storage/optuna_tables.py and database.py: they know Optuna's tables, and nothing reads differently."""

import math
import pickle
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweep.storage.database import Database
from sweep.storage.optuna_internals import trial_id
from sweep.storage.storage import open_storage
from sweep.tracking.folders import StudyFolder

COLUMNS = {
    models.StudyModel: {"study_id", "study_name"},
    models.TrialModel: {"trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"},
    models.TrialParamModel: {"param_id", "trial_id", "param_name", "param_value", "distribution_json"},
    models.TrialValueModel: {"trial_value_id", "trial_id", "objective", "value", "value_type"},
    models.TrialIntermediateValueModel: {
        *("trial_intermediate_value_id", "trial_id", "step"),
        *("intermediate_value", "intermediate_value_type"),
    },
    models.TrialUserAttributeModel: {"trial_user_attribute_id", "trial_id", "key", "value_json"},
    models.TrialSystemAttributeModel: {"trial_system_attribute_id", "trial_id", "key", "value_json"},
}


@pytest.mark.parametrize("model", COLUMNS)
def test_a_table_has_the_columns_that_we_write(model: type) -> None:
    """A new one may be required."""
    table = model.__table__  # type: ignore[attr-defined]
    assert set(table.columns.keys()) == COLUMNS[model], (
        f"Optuna {optuna.__version__} has changed {table.name}; sweep/storage/optuna_tables.py has to follow"
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/s.db" if request.param == "sqlite" else request.getfixturevalue("postgresql")
    storage = open_storage(url, StudyFolder(tmp_path / "studies" / "s"))
    assert isinstance(storage, Database)
    yield storage
    storage.engine.dispose()


def of_optuna(database: Database, name: str) -> list[FrozenTrial]:
    """The trials as Optuna's own storage reads them."""
    backend = RDBStorage(database.engine.url.render_as_string(hide_password=False))
    try:
        return backend.get_all_trials(backend.get_study_id_from_name(name))
    finally:
        backend.remove_session()
        backend.engine.dispose()


def test_trials_read_as_optuna_reads_them(database: Database) -> None:
    study = optuna.create_study(storage=database, study_name="s", directions=["minimize", "maximize"])
    space = {"x": FloatDistribution(1e-3, 1, log=True), "n": IntDistribution(1, 9), "c": CategoricalDistribution("ab")}
    trials = [study.ask(space) for _ in range(3)]
    for trial in trials:
        trial.set_user_attr("größe", {"a": [1, None]})
    study.tell(trials[1], [1.0, -math.inf])
    study.tell(trials[2], state=TrialState.FAIL)
    steps = {1: math.nan, 2: math.inf, 3: -0.0, 7: 1e-300}
    study.add_trial(create_trial(values=[math.inf, 0.5], intermediate_values=steps, system_attrs={"r": 1}))
    study.enqueue_trial({"x": 0.5})
    for _ in range(2):  # the second from memory
        assert repr(study.get_trials()) == repr(of_optuna(database, "s"))
    database.set_trial_intermediate_value(trial_id(study.trials[0]), 4, math.nan)
    database.set_trial_intermediate_value(trial_id(study.trials[0]), 4, 2.0)
    assert repr(study.get_trials()) == repr(of_optuna(database, "s"))
    finished = study.get_trials(states=(TrialState.COMPLETE,))
    assert [trial.number for trial in finished] == [1, 3]


def test_a_storage_can_be_sent_to_another_process(database: Database) -> None:
    optuna.create_study(storage=database, study_name="s").enqueue_trial({"x": 0.5})
    sent = pickle.loads(pickle.dumps(database))
    assert [t.state for t in optuna.load_study(study_name="s", storage=sent).trials] == [TrialState.WAITING]
    sent.engine.dispose()


def test_a_finished_trial_takes_no_report(database: Database) -> None:
    study = optuna.create_study(storage=database, study_name="s")
    trial = study.ask()
    study.tell(trial, 1.0)
    with pytest.raises(UpdateFinishedTrialError):
        database.set_trial_intermediate_value(trial._trial_id, 1, 0.5)
    assert study.trials[0].intermediate_values == {}


def test_a_trial_that_ends_late_is_not_missed(database: Database) -> None:
    """Trials are read once, but not in the order in which they end."""
    study = optuna.create_study(storage=database, study_name="s")
    slow, *fast = (study.ask() for _ in range(4))
    for trial in fast:
        study.tell(trial, 1.0)
        assert len(study.get_trials(states=(TrialState.COMPLETE,))) == trial.number
    study.tell(slow, 0.0)
    assert [t.value for t in study.get_trials(states=(TrialState.COMPLETE,))] == [0.0, 1.0, 1.0, 1.0]
    assert repr(study.get_trials()) == repr(of_optuna(database, "s"))


@pytest.mark.parametrize(
    "pruner",
    [
        optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
        optuna.pruners.HyperbandPruner(min_resource=1, max_resource=8, reduction_factor=2),
        optuna.pruners.MedianPruner(n_startup_trials=2),
    ],
    ids=["asha", "hyperband", "median"],
)
def test_a_pruner_decides_as_with_optunas_storage(database: Database, pruner: optuna.pruners.BasePruner) -> None:
    """Also while it reads only rungs, and while the trial's own values come from memory."""

    def pruned(study: optuna.Study, own: Database | None) -> list[int | None]:
        trials, ends = [study.ask() for _ in range(12)], dict[int, int | None]()
        if own is not None:
            for trial in study.get_trials():
                own.train(study._study_id, trial)
        for step in range(1, 9):
            for trial in (t for t in trials if t.number not in ends):
                trial.report((trial.number * 7 % 12) / step, step)
                if own is None:
                    is_pruned = pruner.prune(study, study._storage.get_trial(trial._trial_id))
                else:
                    with own.reading_rungs():
                        is_pruned = pruner.prune(study, own.get_trial(trial._trial_id))
                if is_pruned or (trial.number < 4 and step == 5):
                    ends[trial.number] = step
                    study.tell(
                        trial, None if is_pruned else 1.0 / (1 + trial.number), TrialState.PRUNED if is_pruned else None
                    )
        return [ends.get(trial.number) for trial in trials]

    alone = pruned(optuna.create_study(study_name="s", pruner=pruner), None)
    assert any(alone)
    assert pruned(optuna.create_study(storage=database, study_name="s", pruner=pruner), database) == alone
