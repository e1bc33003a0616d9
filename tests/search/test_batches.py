"""sweep/search/batches.py: batches larger than the training split are taken out of the space, and it is said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from processes import error_line, quick
from spaces import ranges_of, space_of

from sweep.search.batches import cut
from sweep.search.ranges import contains
from sweep.trial.outcome import Outcome
from sweep.utils.errors import ConfigError

TINY = ("data.n=20", "split.seed=3", "model.widths=[4]", "tracking=off", "trainer.epochs=2")  # 14 samples to train on
SMALL = ("data.n=60", *TINY[1:])  # 42
SEARCHED = "trainer.batch_size"


@pytest.mark.parametrize(
    ("whole", "left"),
    [
        (CategoricalDistribution([16, 32, 64]), CategoricalDistribution([16, 32])),
        (CategoricalDistribution([64, 128]), None),
        (IntDistribution(16, 40), IntDistribution(16, 40)),
        (IntDistribution(16, 56, step=8), IntDistribution(16, 40, step=8)),
        (IntDistribution(8, 64, log=True), IntDistribution(8, 42, log=True)),
        (IntDistribution(43, 64), None),
        (FloatDistribution(8, 64), FloatDistribution(8, 42)),
    ],
)
def test_a_range_is_cut_to_the_batches_that_can_be_filled(whole: BaseDistribution, left: BaseDistribution | None):
    assert cut(whole, 42) == left


@given(st.integers(1, 50), st.integers(0, 50), st.integers(1, 9), st.integers(1, 120))
def test_a_cut_range_has_exactly_the_values_that_fit(low: int, width: int, step: int, n_train: int):
    whole = IntDistribution(low, low + width // step * step, step=step)
    left = cut(whole, n_train)
    kept = [value for value in range(1, 101) if left is not None and contains(left, value)]
    assert kept == [value for value in range(1, 101) if contains(whole, value) and value <= n_train]


def test_a_space_has_only_batches_that_fit_and_says_so():
    space = space_of(*SMALL)
    assert ranges_of(space)[SEARCHED] == CategoricalDistribution([16, 32])
    assert space.cuts() == [f"{SEARCHED}: 16, 32 instead of 16, 32, 64, 128; there are 42 samples to train on"]
    assert space.defaults({})[SEARCHED] == 32, "the default, 64, becomes the nearest that fits"


def test_where_no_searched_batch_fits_the_key_leaves_the_space():
    space = space_of(*TINY)
    assert SEARCHED not in ranges_of(space)
    (line,) = space.cuts()
    assert "14 samples to train on" in line
    with pytest.raises(ConfigError, match="64, 128, but there are 14 samples"):
        ranges_of(space_of(*TINY, "trainer.batch_size=64,128"))


def test_options_with_data_of_other_sizes_have_ranges_of_their_own():
    space = space_of("data=noisy_sine,diabetes", "split.max_samples=400", "trainer.batch_size=128,256,300")
    assert ranges_of(space)[SEARCHED] == CategoricalDistribution([128, 256]), "alike for both"
    space = space_of("data=digits,diabetes", "trainer.batch_size=128,1024")
    names = space.named_ranges()
    assert names["trainer.batch_size[digits]"] == CategoricalDistribution([128, 1024])
    assert names["trainer.batch_size[diabetes]"] == CategoricalDistribution([128])


def test_where_the_number_of_samples_is_searched_too_every_configuration_fits():
    space = space_of(
        *SMALL,
        *("scheduler=constant", "optimizer.lr=0.01", "split.max_samples=20,60", "trainer.batch_size=8,32,64"),
    )
    found = [(c.values["split.max_samples"], c.values[SEARCHED]) for c in space.everything()]
    assert sorted(found) == [(20, 8), (60, 8), (60, 32)]
    assert len(space.cuts()) == 1


@pytest.mark.process
def test_a_batch_size_that_is_given_is_never_changed(small_trial: Callable[..., Outcome]):
    with pytest.raises(ConfigError, match="is 16, more than the 14 samples"):
        small_trial("data.n=20")  # whose overrides say 16


@pytest.mark.process
def test_a_run_a_study_and_its_dry_run_agree_on_tiny_data(tmp_path: Path):
    run = quick(tmp_path, *TINY)
    assert run.returncode == 0, run.stderr
    assert f"{SEARCHED}: 14 instead of 64; there are 14 samples to train on" in run.stdout + run.stderr
    (config,) = tmp_path.glob("outputs/runs/*/config.yaml")
    assert yaml.safe_load(config.read_text())["trainer"]["batch_size"] == 14
    refused = quick(tmp_path, "-m", *TINY, "trainer.batch_size=15")
    assert refused.returncode == 2
    assert error_line(refused).endswith("is 15, more than the 14 samples to train on; lower it")
    for extra in (["hydra.sweeper.dry_run=true"], [], ["hydra.sweeper.n_trials=4"]):
        done = quick(tmp_path, "-m", *TINY, "hydra.sweeper.n_trials=3", "hydra.sweeper.pack=4", *extra)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count(SEARCHED) == 1
        assert "failed" not in done.stdout
    assert "resuming, 3 of 4" in done.stdout


@pytest.mark.process
def test_tiny_data_fail_no_contender(tmp_path: Path):
    shared = ("compare.n_seeds=2", "compare.name=c", "hydra.sweeper.n_trials=2", "scheduler=constant")
    done = quick(tmp_path, *TINY, *shared, "optimizer=sgd,adam", module="sweep.compare")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(SEARCHED) == 1
    found: dict[str, Any] = yaml.safe_load((tmp_path / "outputs/comparisons/c/comparison.yaml").read_text())
    (task,) = found["tasks"]
    assert task["failed"] == {}
    for contender in task["contenders"].values():
        assert (contender["diverged"], contender["scores"]["missing"], contender["untuned"]["missing"]) == (0, 0, 0)
