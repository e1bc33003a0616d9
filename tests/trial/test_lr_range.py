"""The learning-rate range test: what it reads off ramps, what it says of models, and its use."""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml
from processes import error_line, quick

from sweep import compose
from sweep.config.schema import Config, validate
from sweep.training.range_test import Ramp, suggest
from sweep.trial.prepare import load_data
from sweep.trial.range_test import range_test
from sweep.utils.errors import ConfigError

SMALL = ("data.n=200", "model.widths=[8]", "trainer.batch_size=32", "trainer.epochs=2", "tracking=off")
QUICK = (*SMALL, "lr_range.n_updates=80", "lr_range.n_seeds=3")
LRS = np.logspace(-5, 1, 301)  # 50 updates a decade


def lr_range(cwd: Path, *overrides: str, **options: Any):
    return quick(cwd, *overrides, module="sweep.lr_range", **options)


def config_of(*overrides: str) -> Config:
    return validate(compose(overrides))


def ramp_of(losses: Any, *, shift: float = 1.0, memory: float = 1.0) -> Ramp:
    """A ramp that is told of these losses at LRS, times `shift`, in two portions that overlap."""
    ramp = Ramp(len(LRS), memory, 4.0)
    losses = list(map(float, losses))
    lrs = list(LRS * shift)[: len(losses)]
    for first, last in ((0, 100), (60, len(losses))):
        if losses[first:last]:
            ramp.log({"step/loss": losses[first:last], "step/lr": lrs[first:last]}, range(first + 1, last + 1))
    return ramp


def falling(begin: float = 1e-3, end: float = 1e-1, diverge: float = 1.0) -> Any:
    """1 up to `begin`, 0.2 from `end` on, falling evenly between on a log scale, and 9 from `diverge` on."""
    fall = np.clip(np.log(LRS / begin) / np.log(end / begin), 0, 1)
    return np.where(diverge <= LRS, 9.0, 1 - 0.8 * fall)


# What it reads off losses


def test_the_running_mean_is_not_drawn_to_zero() -> None:
    assert ramp_of([3.0] * 20, memory=10).averages == pytest.approx([3.0] * 20)
    assert ramp_of([0.0, 1.0], memory=2).averages == pytest.approx([0.0, 2 / 3])


def test_the_bounds_are_where_most_of_the_fall_begins_and_ends() -> None:
    said = suggest([ramp_of(falling())])
    assert said.base_lr.value == pytest.approx(1e-3 * 100**0.2, rel=0.06)
    assert said.max_lr.value == pytest.approx(1e-3 * 100**0.9, rel=0.06)
    assert said.diverged_lr is not None
    assert said.diverged_lr.value == pytest.approx(1.0, rel=0.06)
    assert f"diverges at {said.diverged_lr.value:g}" in said.reason([])


def test_low_losses_by_chance_at_the_beginning_are_no_fall() -> None:
    losses = falling()
    losses[3:6] = 0.6
    assert suggest([ramp_of(losses)]).base_lr.value > 1e-3


def test_base_lr_is_at_most_a_third_of_max_lr() -> None:
    said = suggest([ramp_of(falling(0.01, 0.011))])
    assert said.base_lr.value == pytest.approx(said.max_lr.value / 3, rel=0.06)
    assert "a third" in said.reason([])


def test_ramps_give_an_interval_and_their_median() -> None:
    said = suggest([ramp_of(falling(), shift=shift) for shift in (0.5, 3.0, 1.0)])
    assert (said.max_lr.low, said.max_lr.high) == pytest.approx(
        (0.5 * said.max_lr.value, 3 * said.max_lr.value), rel=0.1
    )
    assert said.of("scheduler.max_lr") == said.max_lr
    assert said.of("optimizer.lr").value == pytest.approx(said.max_lr.value / 2, rel=0.06)


def test_a_ramp_ends_where_its_loss_diverges() -> None:
    ramp = ramp_of(falling())
    assert ramp.diverged
    assert ramp.lrs[-1] == pytest.approx(1.0, rel=0.06)


def test_a_loss_near_zero_does_not_diverge_when_it_doubles_again() -> None:
    assert not ramp_of([1.0] * 5 + [1e-12, 1e-11, 1e-10, 0.5]).diverged
    assert ramp_of([1.0] * 5 + [1e-12, 1.1, 0.5]).losses[-1] == 1.1


@pytest.mark.parametrize(
    ("losses", "key", "message"),
    [
        (falling(1e-3, 1e3, 1e9), "max_lr", "does not rise again up to 10, where the ramp ends; raise it"),
        (np.ones(301), "max_lr", "never falls up to 10; raise it"),
        (falling(1e8, 1e9, 1e-2), "min_lr", "never falls, and diverges at 0.01"),
        ([1.0, 1.0, 50.0], "min_lr", "diverges at 1.1e-05 before it could fall; lower it"),
        ([], "min_lr", "diverges before it could fall"),
    ],
)
def test_a_ramp_that_says_nothing_says_what_to_change(losses: Any, key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        suggest([ramp_of(losses)])
    assert refused.value.key == f"lr_range.{key}"


def test_one_strange_seed_among_several_is_left_out() -> None:
    good, bad = ramp_of(falling()), ramp_of(np.ones(301))
    assert suggest([good, bad, good]).n_ramps == 2
    with pytest.raises(ConfigError, match="never falls"):
        suggest([good, bad])


def test_noise_is_no_fall() -> None:
    losses = 1 + 0.3 * np.random.default_rng(0).standard_normal(301)
    with pytest.raises(ConfigError, match="never falls"):
        suggest([ramp_of(losses, memory=15.0)])


# What it says of models

SLOW = ("lr_range.min_lr=1e-3", "lr_range.n_updates=120", "lr_range.n_seeds=1")  # as slow as the default, but shorter


def test_on_a_quadratic_it_stays_below_two_over_the_largest_curvature() -> None:
    """Gradient descent on a quadratic falls at every rate below 2 / L, L the largest eigenvalue of its Hessian."""
    config = config_of("data=diabetes", "model=linear", "optimizer=sgd", *SLOW)
    x = load_data(config).splits.train.x.astype(np.float64)
    config = replace(config, trainer=replace(config.trainer, batch_size=len(x)))  # no noise
    inputs = np.hstack([x.reshape(len(x), -1), np.ones((len(x), 1))])
    limit = 2 / np.linalg.eigvalsh(2 * inputs.T @ inputs / len(x)).max()
    (ramp,) = range_test(config)
    falls = np.diff(ramp.losses) < 0
    assert falls[np.array(ramp.lrs[:-1]) < limit].all()
    assert not falls[-1]
    said = suggest([ramp])
    assert said.diverged_lr is not None
    assert limit / 10 < said.max_lr.value < limit < said.diverged_lr.value < 10 * limit


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_seeds_side_by_side_say_what_they_say_one_by_one(optimizer: str) -> None:
    config = config_of(*QUICK, f"optimizer={optimizer}")
    together, alone = range_test(config, width=3), range_test(config, width=1)
    for one, other in zip(together, alone, strict=True):
        assert one.lrs[:50] == other.lrs[:50] == pytest.approx(np.geomspace(1e-6, 10, 80)[:50])
        assert one.losses[:50] == pytest.approx(other.losses[:50], rel=1e-4)
    assert together[0].losses[:50] != pytest.approx(together[1].losses[:50], rel=1e-4)
    assert suggest(together) == suggest(alone)


# Its command


@pytest.mark.process
class Norm:
    """A callback whose metric the trials follow, not the ramps."""

    metrics: ClassVar = {"norm": "minimize"}

    def on_epoch_end(self, trial: Any, model: Any, metrics: Any) -> dict[str, float]:
        raise AssertionError("a ramp has no callbacks")


def test_ramps_follow_no_callbacks_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", f"{__name__}.*")
    own = (f"trainer.callbacks=[{{_target_: {__name__}.Norm}}]", "trainer.monitor=norm")
    found, plain = range_test(config_of(*QUICK, *own)), range_test(config_of(*QUICK))
    assert [ramp.losses for ramp in found] == [ramp.losses for ramp in plain]


@pytest.mark.process
def test_it_suggests_draws_and_prints_a_command_that_works(tmp_path: Path) -> None:
    done = lr_range(tmp_path, *QUICK, "optimizer=sgd")
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = (tmp_path / "outputs" / "lr_range").iterdir()
    result = yaml.safe_load((folder / "lr_range.yaml").read_text())
    assert list(result["suggestion"]) == ["scheduler.base_lr", "scheduler.max_lr"]
    assert result["reason"][1:] in done.stdout
    assert (folder / "lr_range.png").read_bytes().startswith(b"\x89PNG")
    rows = (folder / "losses.csv").read_text().splitlines()
    assert rows[0] == "seed,update,lr,loss,averaged_loss"
    assert {row.split(",")[0] for row in rows[1:]} == {"0", "1", "2"}
    assert rows[1].split(",")[1:3] == ["1", "1e-06"]
    command = shlex.split(result["commands"]["run"])
    assert result["commands"]["run"] in done.stdout
    assert f"scheduler.max_lr={result['suggestion']['scheduler.max_lr']['value']:g}" in command
    assert not any(word.startswith("lr_range") for word in command)
    trained = quick(tmp_path, *command[3:])
    assert trained.returncode == 0, trained.stderr


@pytest.mark.process
def test_a_schedule_without_bounds_gets_a_rate(tmp_path: Path) -> None:
    done = lr_range(tmp_path, *QUICK, "optimizer=adam", "scheduler=constant", "lr_range.n_seeds=1")
    assert done.returncode == 0, done.stderr
    assert "optimizer.lr=" in done.stdout
    assert "scheduler." not in done.stdout
    assert "optimizer.lr is half of" in done.stdout


@pytest.mark.process
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("lr_range.min_lr=1", "lr_range.max_lr=1e-3"), "lr_range.min_lr: is 1, less than ten times below"),
        (("lr_range.n_updates=5",), "lr_range.n_updates: must be 30 to"),
        (("bounds=auto",), "bounds: is for a study"),
        (("lr_range.updates=50",), "lr_range.updates: is not a key of the config; choose one of: min_lr"),
    ],
)
def test_what_it_cannot_use_is_one_line(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    done = lr_range(tmp_path, *overrides, torch=False)
    assert done.returncode == 2
    assert error_line(done).startswith(f"error: {message}")
    assert [*(tmp_path / "outputs").rglob("*.*")] == []


@pytest.mark.process
def test_a_ramp_that_is_too_short_is_one_line_with_a_picture(tmp_path: Path) -> None:
    done = lr_range(tmp_path, *QUICK, "lr_range.max_lr=0.03")
    assert done.returncode == 2
    message, _, plot = error_line(done).partition(" (plot: ")
    assert message.startswith("error: lr_range.max_lr: the loss does not rise again up to 0.03")
    assert Path(plot.rstrip(")")).is_file()


@pytest.mark.process
def test_a_model_that_fails_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from torch import nn\n"
        "class Broken(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) if not self.training else x.view(-1, 7, 7)\n"
    )
    model = ("model=linear", "model._target_=broken.Broken")
    done = lr_range(tmp_path, *(o for o in QUICK if "widths" not in o), *model, SWEEP_TARGETS="broken.*")
    assert done.returncode == 1
    assert error_line(done).startswith("error: training failed at step 1: RuntimeError")
    assert not (tmp_path / "outputs" / "lr_range").exists()


# Studies that start from it


def ranges(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("bounds=auto:")]


@pytest.mark.process
def test_a_study_starts_from_the_suggestion_and_keeps_it(tmp_path: Path) -> None:
    study = ("-m", "bounds=auto", "optimizer=sgd,adam", "hydra.sweeper.study_name=s", *QUICK)
    begun = quick(tmp_path, *study, "hydra.sweeper.n_trials=1")
    assert begun.returncode == 0, begun.stderr
    assert [line.split()[1] for line in ranges(begun.stdout)] == ["optimizer=sgd", "optimizer=adam"]
    assert lr_range(tmp_path, *QUICK, "optimizer=adam").returncode == 0
    (folder,) = (tmp_path / "outputs" / "lr_range").iterdir()
    for key, interval in yaml.safe_load((folder / "lr_range.yaml").read_text())["suggestion"].items():
        assert f"{key} {interval['value']:.4g} (" in ranges(begun.stdout)[1]
        assert f"{key}={interval['value']:.4g}" in begun.stdout  # trial 0
    resumed = quick(tmp_path, *study, "hydra.sweeper.n_trials=3")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming, 1 of 3" in resumed.stdout
    assert ranges(resumed.stdout) == []  # nothing is tested again
    assert "bounds" not in (tmp_path / "outputs" / "studies" / "s" / "best.yaml").read_text()  # no trial's business
    without = quick(tmp_path, *(o for o in study if o != "bounds=auto"))
    assert without.returncode == 2
    assert "study 's' was started with" in error_line(without)
    again = quick(tmp_path, "from_study=s")
    assert again.returncode == 0, again.stderr


@pytest.mark.process
def test_accepted_changes_are_tested_and_kept(tmp_path: Path) -> None:
    """The first test was of another optimizer and a schedule with bounds."""
    named = ("-m", "bounds=auto", "hydra.sweeper.study_name=s", *QUICK)
    assert quick(tmp_path, *named, "optimizer=adam", "hydra.sweeper.n_trials=1").returncode == 0
    changed = (*named, "optimizer=sgd", "scheduler=constant")
    refused = quick(tmp_path, *changed, "hydra.sweeper.n_trials=2")
    assert refused.returncode == 2
    assert error_line(refused).startswith("error: bounds: the tests of study 's' were of other options; ")
    accepted = quick(tmp_path, *changed, "hydra.sweeper.n_trials=2", "hydra.sweeper.accept_changes=true")
    assert accepted.returncode == 0, accepted.stderr
    (message,) = ranges(accepted.stdout)
    assert re.match(r"bounds=auto:  optimizer\.lr \S+ \(", message)
    resumed = quick(tmp_path, *changed, "hydra.sweeper.n_trials=3")
    assert resumed.returncode == 0, resumed.stderr
    assert ranges(resumed.stdout) == []


@pytest.mark.process
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("scheduler.base_lr=1e-3", "scheduler.max_lr=1e-2"), "auto finds no learning rate among the searched keys"),
        (("lr_range.max_lr=1e-4",), "auto finds no learning rates (lr_range.max_lr: the loss "),
        (("bounds=wide",), "'wide' is unknown; choose auto"),
    ],
)
def test_bounds_that_cannot_be_found_are_one_line(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    done = quick(tmp_path, "-m", *([] if overrides == ("bounds=wide",) else ["bounds=auto"]), *QUICK, *overrides)
    assert done.returncode == 2
    assert error_line(done).startswith(f"error: bounds: {message}")
    assert not (tmp_path / "outputs" / "studies").exists()


@pytest.mark.process
def test_a_single_run_has_no_bounds_to_find(tmp_path: Path) -> None:
    done = quick(tmp_path, "bounds=auto", torch=False)
    assert done.returncode == 2
    assert error_line(done).startswith("error: bounds: is for a study (-m)")
