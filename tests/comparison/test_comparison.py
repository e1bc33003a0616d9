"""`python -m sweep.compare` as a user starts it: real processes, and their folders read as any other program would."""

import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from processes import error_line, make_store, mlflow_runs, quick, quick_start, wait_for_helper
from waiting import wait_until

from sweep.tracking import journal
from sweep.tracking.folders import StudyFolder

pytestmark = pytest.mark.process  # commands, servers, a browser

MODULE = "sweep.compare"
SMALL = ("experiment=debug", "trainer.batch_size=16", "scheduler=constant", "compare.name=c")
UNTRACKED = (*SMALL, "tracking=off")


def compared(cwd: Path, *overrides: str) -> tuple[str, dict[str, Any]]:
    """What a comparison that ends well shows, and its numbers."""
    done = quick(cwd, *overrides, module=MODULE)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == ""
    found = yaml.safe_load((cwd / "outputs/comparisons/c/comparison.yaml").read_text())
    return done.stdout, found


def study(cwd: Path, name: str) -> StudyFolder:
    (path,) = cwd.glob(f"outputs/studies/c--{name}")
    return StudyFolder(path)


def trials_of(folder: StudyFolder) -> list[FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(folder.storage)))
    return optuna.load_study(study_name=folder.path.name, storage=storage).get_trials()


def test_losses(folder: StudyFolder) -> dict[int, float]:
    """Test loss by seed, from the journals."""
    found = {}
    for run in folder.runs():
        start = journal.first(run.journal, "start")
        (end,) = journal.records(run.journal, "end")
        assert start is not None
        found[start["params"]["seed"]] = end["values"]["test/loss"][0]
    return found


test_losses.__test__ = False  # type: ignore[attr-defined]


def test_a_comparison_tunes_each_contender_for_each_seed_and_tells_who_is_better(tmp_path: Path) -> None:
    """A line cannot follow a sine; a model for images cannot even begin, and is left out."""
    contenders = ("model=mlp,linear,convnet", "optimizer.lr=tag(log, interval(1e-2, 1e-1))")
    command = (
        *UNTRACKED,
        *contenders,
        "split.max_samples=400",
        "trainer.epochs=4",
        "compare.n_seeds=6",
        "hydra.sweeper.n_trials=2",
    )
    shown, found = compared(tmp_path, *command)
    (task,) = found["tasks"]
    assert task["verdict"].startswith("mlp is not beaten. mlp is better than linear (")
    assert task["verdict"] in shown
    assert "needs images" in task["failed"]["convnet"]
    assert "convnet is left out" in shown

    seeds = found["seeds"]
    assert len(set(seeds)) == 6
    for name in ("mlp", "linear"):
        tuning = trials_of(study(tmp_path, f"{name}--tuning"))
        assert len(tuning) == 12
        contender = task["contenders"][name]
        for i, chosen in enumerate(contender["chosen"]):
            best = min(tuning[i::6], key=lambda t: t.values[0])
            assert chosen == best.params
        best = min(tuning, key=lambda t: t.values[0])
        assert {f"model={name}", f"optimizer.lr={best.params['optimizer.lr']}"} <= {*contender["best"]}
        fresh = study(tmp_path, f"{name}--chosen-*")
        assert [t.params for t in trials_of(fresh)] == [
            {"seed": seed, **params} for seed, params in zip(seeds, contender["chosen"], strict=True)
        ]
        assert test_losses(study(tmp_path, f"{name}--tuning")).keys() == {0} - set(seeds), "fresh seeds must be fresh"
        losses = [test_losses(fresh)[seed] for seed in seeds]
        assert contender["scores"]["by_seed"] == losses
        assert contender["scores"]["median"] == pytest.approx(np.median(losses))
        untuned = test_losses(study(tmp_path, f"{name}--defaults-6"))
        assert contender["untuned"]["by_seed"] == [untuned[seed] for seed in seeds]
    draws = [trials_of(study(tmp_path, f"{name}--tuning"))[0].params for name in ("mlp", "linear")]
    assert draws[0] != draws[1], "contenders draw on their own"

    text = (tmp_path / "outputs/comparisons/c/comparison.md").read_text()
    assert task["verdict"] in text
    assert (tmp_path / "outputs/comparisons/c/comparison.png").read_bytes().startswith(b"\x89PNG")

    _goes_on(tmp_path, command)


def _goes_on(cwd: Path, command: tuple[str, ...]) -> None:
    """With a larger budget every tuning goes on, and new choices are trained."""
    before = {run.journal: run.journal.read_bytes() for run in study(cwd, "mlp--tuning").runs()}
    _, more = compared(cwd, *command, "hydra.sweeper.n_trials=3", "model=mlp,linear")
    tuning = trials_of(study(cwd, "mlp--tuning"))
    assert len(tuning) == 18
    assert all(path.read_bytes() == text for path, text in before.items())
    values = [[t.values[0] for t in tuning[i::6]] for i in range(6)]
    chosen = [tuning[i + 6 * int(np.argmin(v))].params for i, v in enumerate(values)]
    assert more["tasks"][0]["contenders"]["mlp"]["chosen"] == chosen


def test_a_killed_comparison_goes_on_and_each_study_is_in_mlflow(tmp_path: Path) -> None:
    """Tuned once with a sampler that learns, on two data sets, for a metric that is better upwards; the contenders come
    from the config."""
    make_store(tmp_path)
    command = (
        *SMALL,
        "+compare.over.optimizer='sgd,adam'",
        "data=digits,breast_cancer",
        "model=linear",
        "compare.metric=test/accuracy",
        "compare.retune=false",
        "compare.n_seeds=2",
        "hydra/sweeper/sampler=tpe",
        "hydra/sweeper/pruner=median",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.pack=1",
    )
    begun = tmp_path / "outputs/studies/c--adam--digits--tuning/trials/1/journal.jsonl"
    with quick_start(tmp_path, *command, module=MODULE) as comparison:
        wait_until(begun.exists, comparison)
        comparison.send_signal(signal.SIGKILL)
    wait_for_helper(tmp_path)
    shown, found = compared(tmp_path, *command)
    assert "sgd on digits: tuned, 2 of 2 runs complete (done before)" in shown
    assert "tuned once: the verdict is about the chosen configurations" in shown
    assert "warning: 2 seeds cannot show any difference" in shown
    assert [task["task"] for task in found["tasks"]] == ["digits", "breast_cancer"]
    contenders = [contender for task in found["tasks"] for contender in task["contenders"].values()]
    for contender in contenders:
        assert contender["n_trials"] == 2
        assert contender["chosen"][0] == contender["chosen"][1]
        assert all(0 <= score <= 1 for score in contender["scores"]["by_seed"])
    runs = mlflow_runs(tmp_path)
    parents = {run.info.run_id: run.info.run_name for run in runs if "mlflow.parentRunId" not in run.data.tags}
    assert sorted(map(str, parents.values())) == sorted(
        name for contender in contenders for name in contender["studies"]
    )
    children = Counter(parents[run.data.tags["mlflow.parentRunId"]] for run in runs if run.info.run_id not in parents)
    assert set(children.values()) == {2}
    assert len(children) == 12


def test_a_comparison_whose_terminal_is_closed_saves_and_goes_on_when_asked(tmp_path: Path) -> None:
    command = (
        *UNTRACKED,
        "model=linear,mlp",
        "trainer.epochs=2000",
        "hydra.sweeper.n_trials=1",
        "hydra.sweeper.pack=1",
    )
    with quick_start(tmp_path, *command, module=MODULE) as comparison:
        wait_until(lambda: any(tmp_path.glob("outputs/studies/*/trials/0/journal.jsonl")), comparison)
        comparison.send_signal(signal.SIGHUP)
        _, err = comparison.communicate()
    assert comparison.returncode == 128 + signal.SIGHUP
    assert "Traceback" not in err
    (run,) = (folder for path in tmp_path.glob("outputs/studies/*") for folder in StudyFolder(path).runs())
    assert run.checkpoint.exists()
    assert not (tmp_path / "outputs/comparisons/c/comparison.yaml").exists()


def test_one_contender_left_of_two_is_no_comparison(tmp_path: Path) -> None:
    few = ("compare.n_seeds=2", "hydra.sweeper.n_trials=2", "hydra.sweeper.pack=1")
    done = quick(tmp_path, *UNTRACKED, "model=linear,convnet", *few, module=MODULE)
    assert done.returncode == 1
    assert error_line(done) == "error: fewer than two contenders can be compared; see above"
    assert "nothing to compare; linear is alone." in done.stdout
    assert (tmp_path / "outputs/comparisons/c/comparison.md").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"compare: needs two contenders or more; .*optimizer=sgd,adam"),
        (["optimizer=adam", "+compare.over.optimizer='sgd,adam'"], r"compare: needs two contenders or more"),
        (["optimizer=sgd,adma"], r"optimizer: no option 'adma'; choose one of: .*adam"),
        (["optimizer=adam,sgd", "optimizer.betas=[0.9,0.99]"], r"optimizer.betas: .*\(of the contender sgd\)"),
        (["optimizer=sgd,adam", "seed=1,2"], r"seed: .*set compare.n_seeds"),
        (["optimizer=sgd,adam", "trainer.seed=3"], r"trainer.seed: would be the same for every run"),
        (["optimizer=sgd,adam", "bounds=auto"], r"bounds: auto is for a study"),
        (["optimizer=sgd,adam", "compare.n_seeds=1"], r"compare.n_seeds: must be 2 to 1000, got 1"),
        (["optimizer=sgd,adam", "compare.metric=val/loss"], r"compare.metric: must be one of the test split"),
        (["optimizer=sgd,adam", "compare.metric=test/accuracy"], r"compare.metric: trials on this data have no"),
        (["optimizer=sgd,adam", "hydra/sweeper/sampler=tpe"], r"hydra/sweeper/sampler: only random draws"),
        (["optimizer=sgd,adam", "hydra.sweeper.timeout=9"], r"hydra.sweeper.timeout: .*unequal budgets"),
        (["experiment=seed_study,debug"], r"split.max_samples: is None for seed_study, but 64 for debug: .*alike"),
        (
            ["experiment=seed_study,debug", "split.max_samples=64"],
            r"trainer.epochs: is 60 for seed_study, but 2 for debug: .*; set it for all on the command line",
        ),
        (["+compare.over.seed='1,2'"], r"compare.over.seed: is not a group with options"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, overrides: list[str], message: str) -> None:
    done = quick(tmp_path, *overrides, "tracking=off", torch=False, module=MODULE)
    assert done.returncode == 2
    assert re.match(f"error: {message}", error_line(done)), done.stderr
    assert not list(tmp_path.glob("outputs/*/*"))
