"""Studies of a training function of a user's own: searched, pruned, recorded, compared, resumed, killed."""

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import functions
import psutil
import pytest
import yaml
from processes import (
    error_line,
    make_store,
    mlflow_curve,
    mlflow_runs,
    only_run,
    quick,
    quick_start,
    recorded,
)
from waiting import wait_until

from sweep import (
    ConfigError,
    Trial,
    compose,
    load_model,
    load_study,
    run_comparison,
    run_lr_range,
    run_study,
    run_trial,
)
from sweep.api import write_report
from sweep.study.study_result import StudyResult
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.utils.errors import Interrupted

pytestmark = [pytest.mark.process, pytest.mark.targets("functions.*")]

FUNCTIONS = str(Path(functions.__file__).parent)
UNTRACKED = "tracking=off"


def own(name: str, *overrides: str) -> list[str]:
    return ["trainer=function", f"trainer.call=functions.{name}", *overrides]


def interval(low: float, high: float) -> str:
    return f'+search.x="interval({low}, {high})"'


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """Two seeds of each of eight trials, by a metric that only the function knows, in MLflow."""
    cwd = make_store(tmp_path_factory.mktemp("study"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setenv("SWEEP_TARGETS", "functions.*")
        return run_study(
            own("quadratic", "trainer.epochs=12", "+x=1.0", "+other=2", interval(0, 6)),
            study_name="s",
            objective="score",
            direction="maximize",
            sampler="random",
            pruner="asha",
            seeds=2,
            n_trials=8,
        )


def test_it_searches_a_key_of_the_users_own_and_prunes(study: StudyResult) -> None:
    assert study.best is not None
    assert study.results[0].params["x"] == 1.0, "the value on the command line comes first"
    complete = [trial for trial in study.results if trial.state == "complete"]
    assert {trial.state for trial in study.results} == {"complete", "pruned"}
    assert study.best.value == max(-abs(trial.params["x"] - 3) for trial in complete)
    best = yaml.safe_load(StudyFolder(study.folder).best.read_text())["overrides"]
    assert {"+x=1.0", "+other=2", f"x={study.best.params['x']}", "trainer.monitor=score"} <= {*best}
    assert "trainer.direction=maximize" in best


def test_mlflow_has_params_curves_and_what_it_returned(study: StudyResult) -> None:
    cwd = study.folder.parents[2]
    runs = {run.info.run_name: run for run in mlflow_runs(cwd)}
    run = runs["t0-functions.quadratic-s1"]
    expected = {"trainer.call": "functions.quadratic", "trainer.epochs": "12", "x": "1.0", "other": "2", "seed": "1"}
    assert expected.items() <= run.data.params.items()
    assert (run.data.metrics["test/loss"], run.data.metrics["score"]) == (4, -2)
    assert mlflow_curve(cwd, run.info.run_id, "val/loss")[0] == [*range(1, 13)]
    assert "s" in runs


def test_its_report_is_written(study: StudyResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study.folder.parents[2])
    page = write_report(load_study("s")).read_text()
    assert "functions.quadratic" in page
    assert "score" in page


def test_its_model_is_the_functions_own(study: StudyResult) -> None:
    with pytest.raises(ConfigError, match=r"^run: functions.quadratic trained '.*', and keeps models in a"):
        load_model(study.folder)


def test_its_best_configuration_is_trained_again(study: StudyResult, monkeypatch: pytest.MonkeyPatch) -> None:
    cwd = study.folder.parents[2]
    done = quick(cwd, "from_study=s", UNTRACKED, SWEEP_TARGETS="functions.*", PYTHONPATH=FUNCTIONS)
    assert (done.returncode, done.stderr) == (0, "")
    assert study.best is not None
    assert re.search(rf"^  best score +{study.best.value:.6g} ", done.stdout, re.MULTILINE)


def test_another_value_of_a_key_of_the_users_own_is_another_study(
    study: StudyResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study.folder.parents[2])
    changed = own("quadratic", "trainer.epochs=12", "+x=1.0", "+other=3", interval(0, 6))
    settings: dict[str, Any] = {"objective": "score", "direction": "maximize", "seeds": 2, "n_trials": 8}
    with pytest.raises(ConfigError, match=r"other = 2, now 3"):
        run_study(changed, study_name="s", sampler="random", pruner="asha", **settings)
    with pytest.raises(ConfigError, match=r'search.x = "?.*'):
        run_study([*changed[:-2], "+other=2", interval(0, 5)], study_name="s", **settings)


ONES = ("raises", "exits", "reports_nothing", "reports_nan", "reports_text", "reports_backwards", "saves_a_module")


def test_a_study_goes_on_after_each_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ",".join((*ONES, "reports_nan_first", "returns_alone", "reports_an_odd_name"))
    study = run_study(
        own("one_of", "+x=1.5", "+name=raises", f'+search.name="choice({names})"', UNTRACKED),
        sampler="grid",
        pruner="none",
        max_failure_rate=1,
    )
    found = {trial.params["name"]: trial for trial in study.results}
    assert {name for name, trial in found.items() if trial.state == "complete"} == {"returns_alone"}
    assert found["returns_alone"].value == 1.5
    for name in ("reports_nan", "reports_nan_first"):
        assert found[name].diverged
        assert found[name].state == "pruned"
    assert found["raises"].problem == "functions.one_of: RuntimeError: no such luck"
    assert found["exits"].problem == "functions.one_of: called sys.exit(3); return, or raise an error"
    for name in ("reports_nothing", "reports_text", "reports_backwards", "saves_a_module", "reports_an_odd_name"):
        assert found[name].state == "failed"
        assert str(found[name].problem).startswith("functions.one_of: ")


def test_a_trial_that_never_returns_is_ended_and_can_be_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    started = Path("started")

    def later() -> float:
        """999 s later once the function has hung for 3 s, in which the supervisor has noted that the trial began."""
        hangs = started.exists() and time.time() - started.stat().st_mtime > 3
        return time.monotonic() + 999 * hangs

    monkeypatch.setattr("sweep.execution.supervision.monotonic", later)
    base = own("never_returns", "+x=1", '+search.x="choice(1, 2, 3)"', UNTRACKED)
    settings: dict[str, Any] = {"sampler": "grid", "pruner": "none", "max_failure_rate": 1}
    study = run_study(base, **settings, trial_timeout=900)
    problem = "hydra.sweeper.trial_timeout: the trial took longer than 900 s; raise it, or train less"
    assert [trial.state for trial in study.results] == ["complete", "failed", "complete"]
    assert study.results[1].problem == problem
    assert not psutil.pid_exists(int(Path("started").read_text())), "what it started is ended with it"
    Path("mended").touch()
    study = run_study(base, **settings, retry_failed=True)
    assert [trial.value for trial in study.results] == [1.0, 2.0, 3.0]
    failed = StudyFolder(study.folder).trials / "1.failed-1"
    assert journal.status(RunFolder(failed).journal) == "FAILED"
    assert problem in (failed / "error.txt").read_text()


def test_a_trial_of_sweeps_own_loop_ends_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = {"pruner": "none", "max_failure_rate": 1, "n_trials": 2}
    base = ["experiment=debug", "trainer.epochs=2", UNTRACKED]
    for pack in (1, 2):
        study = run_study(base, **settings, trial_timeout=1e-6, pack=pack, study_name=f"pack-{pack}")
        assert [trial.state for trial in study.results] == ["failed"] * 2
        assert str(study.results[0].problem).startswith("hydra.sweeper.trial_timeout: the trial took longer than 1e-06")
        assert [*recorded(RunFolder(study.results[0].folder))["val/loss"][0]] == [1], "at the end of its epoch"
    one_epoch = [*base[:1], "trainer.epochs=1", UNTRACKED]
    study = run_study(one_epoch, **settings, trial_timeout=1e-6, study_name="short")
    assert [trial.state for trial in study.results] == ["complete"] * 2, "what has trained all epochs is kept"


@pytest.mark.parametrize("signum", [signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP], ids=lambda signum: signum.name)
@pytest.mark.parametrize("error", [SystemExit(-1), RuntimeError("a process that loads data was killed")], ids=repr)
def test_an_error_after_a_batch_systems_signal_does_not_fail_the_trial(
    signum: signal.Signals, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    began: list[int] = []

    def train(cfg: Any, trial: Trial) -> dict[str, float]:
        began.append(trial.epoch)
        trial.report(1, {"val/loss": 1.0})
        trial.save(1, {})
        if len(began) == 1:
            os.kill(os.getpid(), signum)
            raise error
        return {"val/loss": 0.5}

    def run() -> StudyResult:
        return run_study([UNTRACKED], train=train, n_trials=1, objective="val/loss", study_name="s")

    with pytest.raises(Interrupted) as stopped:
        run()
    assert stopped.value.signum == signum
    (trial,) = run().results
    assert (trial.state, began) == ("complete", [0, 1])


def test_a_trial_that_is_stopped_when_it_saves_its_last_epoch_is_complete_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def train(cfg: Any, trial: Trial) -> None:
        for epoch in range(trial.epoch + 1, 3):
            trial.report(epoch, {"val/loss": 1 / epoch})
            if epoch == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            trial.save(epoch, {})

    def run() -> StudyResult:
        return run_study([UNTRACKED], train=train, n_trials=1, objective="val/loss", study_name="s")

    with pytest.raises(Interrupted):
        run()
    (trial,) = run().results
    assert (trial.state, trial.value) == ("complete", 0.5)


def test_a_function_may_be_given_as_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SWEEP_TARGETS")
    best = 3

    def train(cfg: Any, trial: Trial) -> dict[str, float]:
        trial.report(1, {"loss": abs(cfg.x - best) + 1})
        return {"val/loss": abs(cfg.x - best)}

    space: dict[str, Any] = {"x": [1, 2, 3, 4], "optimizer": ["sgd", "adam"], "optimizer.lr": "choice(0.5)"}
    settings: dict[str, Any] = {"train": train, "space": space, "sampler": "random"}
    study = run_study([UNTRACKED], n_trials=2, **settings)
    assert study.name.startswith("test_function_study.test_a_function_may_be_given_as_an_object")
    assert {*study.results[0].params} == {"x", "optimizer", "optimizer.lr"}
    assert len(study.resume(n_trials=3).results) == 3
    with pytest.raises(ConfigError, match=r"^trainer.call: test_function_study.*train was given as an object of Pyth"):
        load_study(study.folder).resume(n_trials=4)
    assert len(load_study(study.folder).resume(n_trials=4, train=train).results) == 4
    lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"^train: cannot be sent to other processes \(.*cannot pickle"):
        run_study([UNTRACKED], **{**settings, "train": lambda cfg, trial: {"val/loss": lock.locked()}}, n_jobs=2)
    study = study.resume(n_trials=8, n_jobs=2)
    assert study.value == 0.0, "the workers, which are processes, got it with what it refers to"
    aside = run_study([UNTRACKED], n_trials=1, **settings, study_name="aside", wait=False)
    assert aside.result().results[0].state == "complete"


FAILING = """
import sweep


def train(cfg, trial):
    raise RuntimeError(f"no such luck at {cfg.x}")


study = sweep.run_study(["tracking=off"], train=train, space={"x": [1, 2]}, sampler="grid", max_failure_rate=1)
print(*study.trials().problem, sep="\\n")
"""


def test_a_failed_trial_prints_no_traceback_in_a_program(tmp_path: Path) -> None:
    """Its logging is not configured. The traceback is in the trial's folder."""
    (tmp_path / "program.py").write_text(FAILING)
    done = quick(tmp_path, module="program.py")
    problems = [f"__main__.train: RuntimeError: no such luck at {x}" for x in (1, 2)]
    assert (done.returncode, done.stderr, done.stdout.splitlines()) == (0, "", problems)
    (error,) = tmp_path.glob("outputs/studies/*/trials/0/error.txt")
    assert "Traceback" in error.read_text()


@pytest.mark.parametrize(
    ("base", "settings", "message"),
    [
        ([], {"train": "mypkg.train"}, "train: must be a function of a config and a trial, got 'mypkg.train'"),
        ([], {"train": functions.takes_one}, "trainer.call: takes_one takes (cfg: Any) -> None; write it as"),
        (["trainer.call=a.b"], {"train": functions.steps}, "trainer.call: names a training function, and another is"),
        ([], {"space": {"x": [1, 2]}}, "space: is for a training function; give it as train=, or call it search"),
        (["+x=1"], {"train": functions.steps, "space": {"x": [1, 2]}}, "x: is both set and searched; leave one"),
        ([], {"train": functions.steps, "space": {"trainer.epohcs": [1, 2]}}, "trainer.epohcs: "),
    ],
)
def test_an_object_that_cannot_train_is_one_line(
    base: list[str], settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        run_study([*base, UNTRACKED], pruner="none", **settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not Path("outputs").exists()


def test_a_trial_without_the_objective_says_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = {"max_failure_rate": 1, "pruner": "none", "n_trials": 1, "objective": "f1"}
    study = run_study(own("quadratic", "trainer.epochs=1", "+x=1", UNTRACKED), direction="maximize", **settings)
    problem = (
        "hydra.sweeper.objective: a trial has no 'f1'; it has: score, test/loss, test/score, time/train_s, val/loss"
    )
    assert study.results[0].problem == problem


def test_steps_of_any_size_are_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = own("steps", "+x=1.0", '+search.x="choice(1.0, 2.0, 3.0, 4.0)"', UNTRACKED)
    with pytest.raises(ConfigError, match=r"^hydra.sweeper.max_epochs: is what this pruner has to know: .* set it or"):
        run_study(base, sampler="grid", pruner="hyperband")
    study = run_study(base, sampler="grid", pruner="asha", max_epochs=1200)
    assert [trial.state for trial in study.results] == ["complete", "pruned", "pruned", "pruned"]
    values = [{*trial.intermediate_values} for trial in study.optuna.trials]
    assert values == [{*range(100, 1201, 100)}, {100}, {100}, {100}], "the lowest rung is at 100"


def test_folds_reach_a_function_that_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = {"folds": 3, "n_trials": 1, "pruner": "none"}
    with pytest.raises(ConfigError, match=r"^hydra.sweeper.folds: needs a function that reads cfg.split.fold"):
        run_study(own("of_fold", UNTRACKED), **settings)
    study = run_study(own("of_fold", "split=random", UNTRACKED), **settings)
    assert study.value == 1.0
    runs = [RunFolder(study.folder / "trials" / "0" / f"seed-{place}") for place in range(3)]
    assert [recorded(run)["n"][1] for run in runs] == [[3.0]] * 3


def test_packs_and_range_tests_need_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = own("quadratic", "trainer.epochs=2", "+x=1.0", interval(0, 6), UNTRACKED)
    problem = "sweep's own loop, but trainer.call names a training function; leave it out"
    with pytest.raises(ConfigError, match=f"^hydra.sweeper.pack: a pack needs {problem}$"):
        run_study(base, pack=8, n_trials=3)
    with pytest.raises(ConfigError, match=f"^bounds: auto needs {problem}$"):
        run_study([*base, "bounds=auto"], n_trials=3)
    with pytest.raises(ConfigError, match=f"^trainer.call: a range test needs {problem}$"):
        run_lr_range(base[:-2])
    assert len(run_study(base, pack="auto", n_trials=3).results) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (['+search.xx="interval(0, 6)"'], "search.xx: the config has no key 'xx'; correct it, or add the key with its"),
        (["hydra.sweeper.objective=score"], "hydra.sweeper.direction: is needed for 'score', which your function"),
        (["xx=1,2"], "xx: "),
        (["trainer.call=functions.takes_one"], "trainer.call: takes_one takes (cfg: Any) -> None; write it as"),
        (["trainer.call=os.system"], "trainer.call: 'os.system' is not an allowed target"),
    ],
)  # fmt: skip
def test_a_study_that_cannot_be_is_one_line(more: list[str], message: str, tmp_path: Path) -> None:
    base = ("-m", *own("quadratic", "trainer.epochs=2", "+x=1.0", interval(0, 6), UNTRACKED))
    done = quick(tmp_path, *base, *more, SWEEP_TARGETS="functions.*", PYTHONPATH=FUNCTIONS)
    assert done.returncode == 2
    assert error_line(done).startswith(f"error: {message}")
    assert not (tmp_path / "outputs").exists()


def test_a_run_shows_what_it_reported(tmp_path: Path) -> None:
    done = quick(
        *(tmp_path, *own("quadratic", "trainer.epochs=3", "+x=5", UNTRACKED, "trainer.monitor=score")),
        *("trainer.direction=maximize",),
        SWEEP_TARGETS="functions.*",
        PYTHONPATH=FUNCTIONS,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^  best score +-2 \(epoch 1 of 3\)", done.stdout, re.MULTILINE)
    assert re.search(r"^  test/score +-2 ", done.stdout, re.MULTILINE)
    assert only_run(tmp_path).path.name.endswith("_function")


def test_a_run_that_only_returns_has_an_outcome(tmp_path: Path) -> None:
    cfg = compose(own("returns_alone", "+x=0.25", UNTRACKED, f"output_dir={tmp_path}"))
    outcome = run_trial(cfg)
    assert (outcome.monitor, outcome.value, outcome.is_best, outcome.n_epochs) == ("val/loss", 0.25, False, 0)


SETTINGS = ("compare.n_seeds=2", "compare.metric=test/score")


def test_a_comparison_judges_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_comparison(
        own("quadratic", "trainer.epochs=2", "+x=1.0", interval(0, 6), UNTRACKED, *SETTINGS),
        {"optimizer": ["sgd", "adam"]},
        objective="score",
        direction="maximize",
        n_trials=2,
    )
    values = [run.values["test/score"] for entry in result.entries for run in entry.runs if run is not None]
    assert len(values) == 4
    assert all(run is not None and run.values["test/score"] == -2 for e in result.entries for run in e.untuned)
    assert (result.folder / "comparison.png").exists()


@pytest.mark.parametrize("saves", [True, False], ids=["saves", "never saves"])
def test_a_killed_study_has_every_epoch_once(saves: bool, tmp_path: Path) -> None:
    """Its controller is its worker, and is killed with `kill -9` in the middle of the second trial."""
    cwd, trace = make_store(tmp_path), tmp_path / "trace"
    command = ("-m", *own("killed", "trainer.epochs=8", "+x=1.0", '+search.x="choice(1.0, 2.0, 3.0)"'))
    command += (f"+saves={saves}", f"+trace={trace}", "hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=none")
    command += ("hydra.sweeper.study_name=k",)
    with quick_start(cwd, *command, SWEEP_TARGETS="functions.*", PYTHONPATH=FUNCTIONS) as process:
        wait_until((cwd / "here").exists, process)
        os.kill(int((cwd / "here").read_text()), signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    (cwd / "go").touch()
    done = quick(cwd, *command, SWEEP_TARGETS="functions.*", PYTHONPATH=FUNCTIONS)
    assert (done.returncode, done.stderr) == (0, "")
    called = [tuple(map(int, line.split())) for line in trace.read_text().splitlines()]
    again = [] if saves else [(1, epoch) for epoch in range(1, 5)]
    assert sorted(called) == sorted([(number, e) for number in range(3) for e in range(1, 9)] + again)
    folder = StudyFolder(cwd / "outputs" / "studies" / "k")
    study = load_study(folder.path)
    assert [trial.state for trial in study.results] == ["complete"] * 3
    runs = {run.data.tags.get("trial"): run for run in mlflow_runs(cwd)}
    for trial in study.results:
        steps, values = recorded(folder.trial(trial.number))["val/loss"]
        assert steps == [*range(1, 9)]
        assert trial.value == min(values) == values[0]
        expected, x = 0.0, trial.params["x"]
        for epoch, value in enumerate(values, 1):
            assert 0 <= value - expected - x * epoch < 1
            expected = value
        assert mlflow_curve(cwd, runs[str(trial.number)].info.run_id, "val/loss") == (steps, values)
    first, killed = (recorded(folder.trial(number))["val/loss"][1] for number in (0, 1))
    draws = [[b - a for a, b in zip([0, *one], one, strict=False)] for one in (first, killed)]
    parts = [[d - x * e for e, d in enumerate(of, 1)] for of, x in zip(draws, (1.0, 2.0), strict=True)]
    assert parts[0] == pytest.approx(parts[1]), "the generators continue where they were"
