"""sweep/storage/optuna_tables.py and database.py: they know Optuna's tables, and nothing reads differently."""

import math
import pickle
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, SuccessiveHalvingPruner
from optuna.pruners._successive_halving import _get_competing_values, _is_trial_promotable_to_next_rung
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweep.config.metrics import sign_of
from sweep.search.pruners import HalvingByFirstTrial, compares_ranks, compares_rungs
from sweep.storage.database import Database
from sweep.storage.optuna_internals import trial_id
from sweep.storage.optuna_tables import OptunaTables
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
    ("make", "direction"),
    [
        (lambda: SuccessiveHalvingPruner(min_resource=1, reduction_factor=2), StudyDirection.MINIMIZE),
        (
            lambda: SuccessiveHalvingPruner(min_resource=1, reduction_factor=3, bootstrap_count=2),
            StudyDirection.MAXIMIZE,
        ),
        (lambda: SuccessiveHalvingPruner(reduction_factor=2), StudyDirection.MINIMIZE),
        (lambda: HalvingByFirstTrial(), StudyDirection.MAXIMIZE),
        (lambda: HyperbandPruner(min_resource=1, max_resource=8, reduction_factor=2), StudyDirection.MINIMIZE),
        (lambda: MedianPruner(n_startup_trials=2), StudyDirection.MINIMIZE),
    ],
    ids=["asha", "asha-maximize", "asha-auto", "first", "hyperband", "median"],
)
def test_a_pruner_decides_as_with_optunas_storage(
    database: Database, make: Callable[[], BasePruner], direction: StudyDirection
) -> None:
    """Also while PostgreSQL counts the values at rungs, and while the trial's own values come from memory.

    Values are equal in many trials, or differ in their last bit, or are infinite. Some trials report every third epoch,
    so they reach several rungs at once.
    """

    def value(number: int, step: int) -> float:
        if number in (5, 10):
            return math.inf if number == 5 else -math.inf
        drawn = (number * 7 % 5) / 10 / step
        return math.nextafter(drawn, 1) if number % 3 == 0 else drawn

    def pruned(study: optuna.Study, own: Database | None) -> list[int | None]:
        pruner = study.pruner
        trials, ends = [study.ask() for _ in range(12)], dict[int, int | None]()
        if own is not None:
            for trial in study.get_trials():
                own.train(study._study_id, trial)
        for step in range(1, 9):
            for trial in (t for t in trials if t.number not in ends and (t.number % 4 or step % 3 == 0)):
                trial.report(value(trial.number, step), step)
                now = study._storage.get_trial(trial._trial_id)
                if own is None or not compares_rungs(pruner):
                    is_pruned = pruner.prune(study, now)
                else:
                    with own.reading_rungs(now, only_ranks=compares_ranks(pruner)):
                        is_pruned = pruner.prune(study, now)
                if is_pruned or (trial.number < 4 and step == 5):
                    ends[trial.number] = step
                    study.tell(
                        trial, None if is_pruned else 1.0 / (1 + trial.number), TrialState.PRUNED if is_pruned else None
                    )
        return [ends.get(trial.number) for trial in trials]

    alone = pruned(optuna.create_study(study_name="s", pruner=make(), direction=direction), None)
    assert any(alone)
    study = optuna.create_study(storage=database, study_name="s", pruner=make(), direction=direction)
    optuna.create_study(storage=database, study_name="other").add_trial(
        create_trial(value=0.0, system_attrs={f"completed_rung_{rung}": 0.0 for rung in range(3)})
    )
    assert pruned(study, database) == alone


def test_what_postgresql_counts_decides_as_the_values_do(postgresql: str, tmp_path: Path) -> None:
    """Each value promotes a trial exactly if it does among all values: equal ones, infinite ones, others by a bit."""
    database = open_storage(postgresql, StudyFolder(tmp_path / "studies" / "s"))
    assert isinstance(database, Database)
    study = optuna.create_study(storage=database, study_name="s")
    values = [0.1, 0.1, 0.3, 0.1 + 0.2, 0.3, math.inf, -math.inf, -math.inf, 1e-300, 0.0, -0.0, 2.0, 0.1]
    for value in values:
        study.add_trial(create_trial(state=TrialState.RUNNING, system_attrs={"completed_rung_0": value}))
    tables, keys = OptunaTables(study._study_id), ["completed_rung_0", "completed_rung_1"]
    with database.engine.begin() as connection:
        found = tables.rungs(connection, keys)
        assert sorted(t.system_attrs["completed_rung_0"] for t in found) == sorted(values)
        for value, direction, factor in product({*values, 0.2}, StudyDirection, (2, 3, 4)):
            if direction == StudyDirection.NOT_SET:
                continue
            counted = tables.ranks(connection, keys, value, sign_of(direction.name))
            decisions = [
                _is_trial_promotable_to_next_rung(value, _get_competing_values(own, value, keys[0]), factor, direction)  # type: ignore[arg-type]
                for own in (found, counted)
            ]
            assert decisions[0] == decisions[1], (value, direction, factor)
    database.engine.dispose()


def test_a_report_at_a_rung_reads_no_trial(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many run: one that thousands of workers train reads a few numbers."""
    pruner = SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    study = optuna.create_study(storage=database, study_name="s", pruner=pruner)
    trials = [study.ask() for _ in range(3)]
    monkeypatch.setattr(OptunaTables, "read", None)
    monkeypatch.setattr(RDBStorage, "_get_trials", None)
    for trial, is_pruned in zip(trials, (False, True, False), strict=True):
        database.train(
            study._study_id,
            optuna.trial.FrozenTrial(
                number=trial.number,
                state=TrialState.RUNNING,
                value=None,
                datetime_start=None,
                datetime_complete=None,
                params={},
                distributions={},
                user_attrs={},
                system_attrs={},
                intermediate_values={},
                trial_id=trial._trial_id,
            ),
        )
        database.set_trial_intermediate_value(trial._trial_id, 1, [0.5, 0.7, 0.2][trial.number])
        now = database.get_trial(trial._trial_id)
        with database.reading_rungs(now, only_ranks=True):
            assert pruner.prune(study, now) == is_pruned
