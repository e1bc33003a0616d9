"""sweep/trial/pack_scheduler.py: which trials share a pack, and for which a pack is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sweep import Samples, compose
from sweep.config.schema import Config, validate
from sweep.training.packed.parameters import Unpackable
from sweep.trial.pack_scheduler import PackScheduler
from sweep.trial.prepare import Data, divided, load_samples
from sweep.trial.remembered import RememberedData

SMALL = ("experiment=debug", "model.widths=[4]", "scheduler=constant")


def config_of(*overrides: str) -> Config:
    return validate(compose([*SMALL, *overrides]))


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackScheduler:
    monkeypatch.chdir(tmp_path)
    return PackScheduler(2, 2, RememberedData())


def test_a_pack_that_is_refused_for_one_optimizer_is_not_for_another(scheduler: PackScheduler) -> None:
    """As after measuring that Adam gains nothing from packs, or after a pass that failed."""
    adam, sgd = config_of("optimizer=adam"), config_of("optimizer=sgd")
    group, _ = scheduler.member(adam)
    scheduler.refuse(group, Unpackable("a pack of them is no faster"))
    with pytest.raises(Unpackable, match="a pack of them is no faster"):
        scheduler.member(config_of("optimizer=adam", "optimizer.lr=0.02"))
    of_sgd, _ = scheduler.member(sgd)
    assert of_sgd is not group
    scheduler.refuse(of_sgd, Unpackable("the pass failed"))
    for config, why in ((adam, "a pack of them is no faster"), (sgd, "the pass failed")):
        with pytest.raises(Unpackable, match=why):
            scheduler.member(config)


def test_trials_on_augmented_samples_train_one_by_one() -> None:
    def load(config: Config) -> Data:
        samples = load_samples(config)
        assert isinstance(samples, Samples)
        return divided(replace(samples, augment=torch.clone), config)

    with pytest.raises(Unpackable, match="its data are augmented, which each trial does batch by batch"):
        PackScheduler(2, 2, load).member(config_of("optimizer=adam"))
