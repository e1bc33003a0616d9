"""Studies whose workers train several trials in one pass: real processes, compared with studies that do not."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest
from campaigns.kill_study import disagreements
from optuna.trial import FrozenTrial, TrialState
from processes import error_line, quick, quick_start, recorded, run, start, wait_for_helper
from study_folders import epochs_of, folder_of, trials_of
from waiting import wait_until

from sweep import compose, load_study, run_trial
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.training import checkpoint

pytestmark = pytest.mark.process  # commands, servers, a browser

SMALL = ("-m", "experiment=debug", "tracking=off", "trainer.epochs=4", "hydra.sweeper.study_name=s")
AS_DRAWN = ("hydra/sweeper/sampler=random", "hydra/sweeper/pruner=none")


def same(value: Any) -> Any:
    """As it may differ in float32 where sums are in another order."""
    return None if value is None else pytest.approx(value, rel=1e-4, abs=1e-6)


def searched(cwd: Path, *overrides: str, **environment: Any) -> tuple[list[FrozenTrial], str]:
    """The trials of a study that ends well, and what was shown."""
    cwd.mkdir(exist_ok=True)
    done = quick(cwd, *SMALL, *overrides, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return trials_of(cwd), done.stdout


def n_at_once(cwd: Path) -> int:
    """The largest number of runs that were begun and not ended."""
    changes = []
    for path in cwd.glob("outputs/studies/s/trials/**/journal.jsonl"):
        for record, _ in journal.read(path):
            if record["kind"] in ("start", "end"):
                changes.append((record["time"], 1 if record["kind"] == "start" else -1))
    at_once, most = 0, 0
    for _, change in sorted(changes):
        at_once += change
        most = max(most, at_once)
    return most


def assert_same_curves(run_of_one: RunFolder, run_of_other: RunFolder) -> None:
    one, other = recorded(run_of_one), recorded(run_of_other)
    assert list(one) == list(other)
    for name, (steps, values) in one.items():
        assert steps == other[name][0]
        assert values == same(other[name][1]), name


def test_a_packed_study_has_the_values_of_one_that_trains_trial_by_trial(tmp_path: Path) -> None:
    """Of two optimizers, some trials diverging and some that cannot begin."""
    search = (
        *(*AS_DRAWN, "optimizer=sgd,adam", "scheduler=constant", "optimizer.lr=1e-3,2e-3,5e-3,1e-2,2e-2,1e25"),
        *("trainer.batch_size=8,16", "hydra.sweeper.n_trials=12", "hydra.sweeper.max_failure_rate=1"),
        "model.activation=relu,tanh,nope",
        "hydra.sweeper.enqueue=[{optimizer.lr: 1e25, trainer.batch_size: 8}, {model.activation: nope}]",
    )
    alone, shown_alone = searched(tmp_path / "alone", *search)
    packed, shown = searched(tmp_path / "packed", *search, "hydra.sweeper.pack=4")
    assert n_at_once(tmp_path / "alone") == 1
    assert n_at_once(tmp_path / "packed") == 4
    assert "trains sequentially" not in shown
    assert [t.number for t in packed] == list(range(12))
    for one, other in zip(packed, alone, strict=True):
        assert (one.params, one.state) == (other.params, other.state)
        assert one.user_attrs.get("problem") == other.user_attrs.get("problem")
        assert one.value == same(other.value)
        assert one.intermediate_values == same(other.intermediate_values)
        folders = [folder_of(tmp_path / name).trial(one.number) for name in ("packed", "alone")]
        if one.state == TrialState.FAIL:
            assert "'nope'" in folders[0].error.read_text()
        else:
            assert_same_curves(*folders)
    ends = [(t.state, "diverged" in t.user_attrs.get("problem", "")) for t in packed]
    kinds = {(TrialState.COMPLETE, False), (TrialState.PRUNED, True), (TrialState.FAIL, False)}
    assert set(ends) == kinds, "the case needs each of them"
    assert len({t.params["optimizer"] for t, end in zip(packed, ends, strict=True) if end[0].name == "COMPLETE"}) == 2
    lines = [sorted(re.findall(r"trial (\d+) .*(failed|diverged)", text)) for text in (shown, shown_alone)]
    assert lines[0] == lines[1]


def test_replicates_are_packed_and_a_value_is_their_mean(tmp_path: Path) -> None:
    search = (*AS_DRAWN, "hydra.sweeper.seeds=2", "hydra.sweeper.n_trials=3", "trainer.patience=1")
    alone, _ = searched(tmp_path / "alone", *search)
    packed, shown = searched(tmp_path / "packed", *search, "hydra.sweeper.pack=4")
    assert "(trains the first of its 2 seeds alone, so with another value: that of the study is their mean)" in shown
    assert n_at_once(tmp_path / "packed") == 4
    for one, other in zip(packed, alone, strict=True):
        assert (one.params, one.state) == (other.params, TrialState.COMPLETE)
        runs = [folder_of(tmp_path / "packed").trial(one.number, i) for i in range(2)]
        best = [min(recorded(folder)["val/loss"][1]) for folder in runs]
        assert best[0] != best[1]
        assert one.value == pytest.approx(sum(best) / 2, rel=1e-12)
        assert one.value == same(other.value)
        for i, folder in enumerate(runs):
            assert_same_curves(folder, folder_of(tmp_path / "alone").trial(one.number, i))


def test_a_grid_of_seeds_is_packed(tmp_path: Path) -> None:
    lrs = ("1e-3", "1e-2", "3e-2")
    grid = (f"optimizer.lr={','.join(lrs)}", "seed=range(0,4)", "scheduler=constant", "trainer.batch_size=16")
    trials, _ = searched(
        tmp_path, *grid, "hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=none", "hydra.sweeper.pack=8"
    )
    assert n_at_once(tmp_path) == 8
    tried = sorted((t.params["optimizer.lr"], t.params["seed"]) for t in trials)
    assert tried == [(float(lr), seed) for lr in lrs for seed in range(4)]
    assert len({t.value for t in trials}) == 12
    alone = (*SMALL[1:4], "scheduler=constant", "trainer.batch_size=16", f"output_dir={tmp_path}/alone")
    for trial in (trials[0], trials[-1]):
        own = [f"{name}={value}" for name, value in trial.params.items()]
        assert trial.value == same(run_trial(compose([*alone, *own])).value)


USERS = """
from torch import nn


class Users(nn.Sequential):
    def __init__(self, in_features: int, out_features: int, kind: str):
        if kind == "broken":
            raise RuntimeError("a broken model")
        norm = [nn.BatchNorm1d(4)] if kind == "normed" else []
        super().__init__(nn.Linear(in_features, 4), *norm, nn.Tanh(), nn.Linear(4, out_features))
"""


def test_side_by_side_workers_pack_what_can_be_packed_and_tell_once_what_cannot(tmp_path: Path) -> None:
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "__init__.py").write_text(USERS)
    model = ("model._target_=mypkg.Users", "~model.widths", "~model.activation", "~model.dropout")
    kinds = ("plain", "normed", "broken")
    trials, shown = searched(
        tmp_path,
        *(*model, f"+model.kind={','.join(kinds)}", "optimizer.lr=1e-3,1e-2,2e-2,3e-2", "scheduler=constant"),
        *("trainer.batch_size=16", "hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=none"),
        *("hydra/launcher=joblib", "hydra.sweeper.n_jobs=2", "hydra.sweeper.pack=4"),
        PYTHONPATH=str(tmp_path),
        SWEEP_TARGETS="mypkg.*",
    )
    assert [t.number for t in trials] == list(range(12))
    for trial in trials:
        broken = trial.params["model.kind"] == "broken"
        assert trial.state == (TrialState.FAIL if broken else TrialState.COMPLETE)
        if broken:
            assert "a broken model" in trial.user_attrs["problem"]
            assert "RuntimeError: a broken model" in folder_of(tmp_path).trial(trial.number).error.read_text()
        else:
            assert trial.value == min(recorded(folder_of(tmp_path).trial(trial.number))["val/loss"][1])
    (message,) = [line for line in shown.splitlines() if "trains sequentially" in line]
    normed = [str(t.number) for t in trials if t.params["model.kind"] == "normed"]
    match = re.fullmatch(r"trial (\d+) trains sequentially: BatchNorm1d \('1'\) keeps running statistics", message)
    assert match is not None, message
    assert match[1] in normed
    reasons = {str(t.number): t.packing for t in load_study(folder_of(tmp_path).path).results if t.packing}
    assert reasons == dict.fromkeys(normed, "trains sequentially: BatchNorm1d ('1') keeps running statistics")
    assert len({t.user_attrs["worker"] for t in trials}) == 2
    assert n_at_once(tmp_path) > 2


LONG = (
    *("experiment=debug", "data.n=2000", "split.max_samples=2000", "trainer.epochs=16", "trainer.batch_size=16"),
    "trainer.checkpoint_interval_s=100",  # only as it is stopped
)
LONG_STUDY = ("-m", *LONG, "hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=12", "hydra.sweeper.pack=4")


def test_a_packed_study_that_is_stopped_and_killed_ends_with_each_trial_once(tmp_path: Path) -> None:
    """Under the default sampler and pruner, recorded in MLflow."""
    with start(tmp_path, *LONG_STUDY) as process:
        wait_until(lambda: sum(epochs_of(tmp_path, number) for number in range(4)) >= 7, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == ""
    running = [t.number for t in trials_of(tmp_path) if not t.state.is_finished()]
    reached = {number: epochs_of(tmp_path, number) for number in running}
    assert reached
    for number, n in reached.items():
        assert checkpoint.load(folder_of(tmp_path).trial(number).checkpoint)["epoch"] == n
    with quick_start(tmp_path, *LONG_STUDY) as process:
        wait_until(lambda: any(epochs_of(tmp_path, number) > n for number, n in reached.items()), process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert any(not t.state.is_finished() for t in trials_of(tmp_path))
    wait_for_helper(tmp_path)
    done = quick(tmp_path, *LONG_STUDY)
    assert done.returncode == 0, done.stderr
    trials = trials_of(tmp_path)
    assert [t.number for t in trials] == list(range(12))
    assert sorted(int(path.name) for path in folder_of(tmp_path).trials.iterdir()) == list(range(12))
    assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert disagreements(tmp_path, trials) == []
    for trial in trials:
        steps, values = recorded(folder_of(tmp_path).trial(trial.number))["val/loss"]
        assert steps == list(range(1, len(steps) + 1)), "no epoch twice"
        assert trial.value == min(values)
        assert len(steps) < 16 if trial.state == TrialState.PRUNED else len(steps) == 16
    first = next(t for t in trials if t.number in reached and t.state == TrialState.COMPLETE)
    own = [f"{name}={value}" for name, value in first.params.items()]
    alone = run_trial(compose(["tracking=off", f"output_dir={tmp_path}/alone", *LONG, *own]))
    assert first.value == pytest.approx(alone.value, rel=1e-3), "as if it had been trained in one go, alone"


STOPPING = """
import os, signal
from torch.optim.lr_scheduler import LambdaLR


def schedule(optimizer):
    def rate(epoch):
        if epoch == 2:  # the third is next
            os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    return LambdaLR(optimizer, rate)
"""


def test_a_trial_that_finishes_in_the_epoch_in_which_its_pack_is_stopped_is_complete(tmp_path: Path) -> None:
    (tmp_path / "stopping.py").write_text(STOPPING)
    done = quick(
        tmp_path,
        *(
            *SMALL,
            *AS_DRAWN,
            "hydra.sweeper.pack=2",
            "hydra/sweeper/sampler=grid",
            "trainer.epochs=2,9",
            "optimizer.lr=0.01",
        ),
        *("scheduler=constant", "scheduler._target_=stopping.schedule", "hydra.sweeper.debug=true"),
        PYTHONPATH=str(tmp_path),
        SWEEP_TARGETS="stopping.*",
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.COMPLETE, TrialState.WAITING]
    kept = folder_of(tmp_path).trial(1)
    assert journal.status(kept.journal) == "KILLED"
    assert checkpoint.load(kept.checkpoint)["epoch"] == 2


TWICE = """
import os, signal, threading, time
from torch.optim.lr_scheduler import LambdaLR


def interrupt_twice():
    for _ in range(2):
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)


def schedule(optimizer):
    def rate(epoch):
        if epoch == 1 and "INTERRUPTED" in os.environ:
            del os.environ["INTERRUPTED"]
            threading.Thread(target=interrupt_twice, daemon=True).start()
        return 1.0

    return LambdaLR(optimizer, rate)
"""


def test_a_second_ctrl_c_inside_an_epoch_saves_no_half_epoch(tmp_path: Path) -> None:
    """What is resumed afterwards has the values of a study that nothing interrupted."""
    (tmp_path / "twice.py").write_text(TWICE)
    study = (*SMALL, *AS_DRAWN, "hydra.sweeper.pack=2", "hydra.sweeper.n_trials=2", "hydra.sweeper.sampler.seed=1")
    study += ("scheduler=constant", "scheduler._target_=twice.schedule", "data.n=20000", "split.max_samples=20000")
    study += ("trainer.batch_size=16", "trainer.epochs=3", "trainer.compile=false")
    own: dict[str, Any] = {"PYTHONPATH": str(tmp_path), "SWEEP_TARGETS": "twice.*"}
    done = quick(tmp_path, *study, INTERRUPTED="1", **own)
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.WAITING] * 2
    resumed = searched(tmp_path, *study[len(SMALL) :], **own)[0]
    undisturbed = searched(tmp_path / "undisturbed", *study[len(SMALL) :], **own)[0]
    assert [trial.state for trial in resumed] == [TrialState.COMPLETE] * 2
    assert [trial.values for trial in resumed] == [trial.values for trial in undisturbed]


@pytest.mark.parametrize("pack", ["0", "-1", "x"])
def test_a_width_that_is_none_is_refused_in_one_line(pack: str, tmp_path: Path) -> None:
    done = run(tmp_path, *SMALL, f"hydra.sweeper.pack={pack}")
    assert error_line(done).startswith("error: hydra.sweeper.pack: must be a number >= 1 or auto, got ")
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


_HUNGRY = """
import resource
from pathlib import Path
import matplotlib.backends.backend_agg  # this and the next: which the study's end needs, before memory is short
import pyarrow.parquet
from torch import nn

room = {room} * 2**20
taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()  # without what is only reserved
resource.setrlimit(resource.RLIMIT_DATA, (taken + room, resource.RLIM_INFINITY))


class Hungry(nn.Sequential):
    def __init__(self, in_features: int, out_features: int):
        super().__init__(nn.Linear(in_features, 1000), nn.Tanh(), nn.Linear(1000, 1000), nn.Linear(1000, out_features))
"""


def test_a_pack_that_is_short_of_memory_goes_on_at_half_the_width(tmp_path: Path) -> None:
    (tmp_path / "hungry.py").write_text(_HUNGRY.format(room=500))
    model = ("model._target_=hungry.Hungry", "~model.widths", "~model.activation", "~model.dropout")
    trials, shown = searched(
        tmp_path,
        *(*model, *AS_DRAWN, "trainer.batch_size=32", "trainer.epochs=2", "hydra.sweeper.n_trials=16"),
        "hydra.sweeper.pack=16",
        PYTHONPATH=str(tmp_path),
        SWEEP_TARGETS="hungry.*",
        ARROW_DEFAULT_MEMORY_POOL="system",  # Arrow's own reserves more than it uses
    )
    widths = [int(n) for n in re.findall(r"trial \d+ out of memory.*?,? (\d+)(?: in a pack)? from now on", shown)]
    assert widths, "the case needs a memory that 16 do not fit into"
    assert len({16, *widths}) == 1 + len(widths), "each is less than those before; they are shown by trial"
    assert not any("packing" in t.user_attrs for t in trials), "none trained alone"
    assert [(t.number, t.state) for t in trials] == [(number, TrialState.COMPLETE) for number in range(16)]
    assert n_at_once(tmp_path) > min(widths) > 1
    assert all(t.value == min(recorded(folder_of(tmp_path).trial(t.number))["val/loss"][1]) for t in trials)


_MOODY = """
import torch
from torch import nn

n_packed = 0


class Moody(nn.Linear):
    def forward(self, x):
        global n_packed
        is_packed = torch._C._functorch.maybe_current_level() is not None
        n_packed += is_packed
        if is_packed and n_packed > 4:  # not yet while it is made
            raise RuntimeError("only alone")
        return super().forward(x)
"""


def test_a_pack_whose_pass_fails_leaves_its_trials_to_train_sequentially_each_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "moody.py").write_text(_MOODY)
    model = ("model._target_=moody.Moody", "~model.widths", "~model.activation", "~model.dropout")
    trials, shown = searched(
        tmp_path,
        *(*model, *AS_DRAWN, "trainer.batch_size=16", "hydra.sweeper.n_trials=3", "hydra.sweeper.pack=2"),
        PYTHONPATH=str(tmp_path),
        SWEEP_TARGETS="moody.*",
    )
    assert n_at_once(tmp_path) == 2, "the case needs a pack"
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 3
    assert {t.user_attrs["packing"] for t in trials} == {"trains sequentially: only alone"}
    assert shown.count("trains sequentially") == 1


def test_auto_packs_small_models_and_leaves_large_ones_alone(tmp_path: Path) -> None:
    search = (
        *("model.widths=[4],[3000,3000]", "optimizer.lr=1e-3,1e-2,2e-2,3e-2", "scheduler=constant"),
        *("hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=none", "trainer.batch_size=16", "trainer.epochs=2"),
    )
    trials, shown = searched(tmp_path, *search, "hydra.sweeper.pack=auto")
    assert [(t.number, t.state) for t in trials] == [(number, TrialState.COMPLETE) for number in range(8)]
    (message,) = [line for line in shown.splitlines() if "trains sequentially" in line]
    match = re.fullmatch(
        r"trial (\d+) trains sequentially: an update takes \d+ ms, and a pack of them would gain nothing", message
    )
    assert match is not None, message
    large = {t.number for t in trials if t.params["model.widths"] == "[3000,3000]"}
    assert int(match[1]) in large
    assert n_at_once(tmp_path) > 2
