"""sweep/config/targets.py: what a config may call."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweep import ConfigError
from sweep.config import targets
from sweep.config.targets import check_targets, is_allowed


def refusal(target: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_targets("model", {"_target_": target})
    return caught.value


@pytest.mark.parametrize(
    "target", ["sweep.models.MLP", "sweep.schedules.cyclic", "torch.optim.Adamax", "torch.nn.Linear"]
)
def test_our_own_and_torchs_components_are_allowed(target: str):
    assert is_allowed(target)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "torch.optim",
        "torch.optimizers.Adam",  # shares a beginning with an allowed one, but no dot
        "sweep.run.main",
        "sweep.models_of_mine.MLP",
        "mypkg.Net",
    ],
)
def test_anything_else_is_refused_with_the_way_to_allow_it(target: str):
    error = refusal(target)
    assert error.key == "model._target_"
    assert f"SWEEP_TARGETS={target.partition('.')[0]}.*" in error.problem


def test_the_environment_vouches_for_packages_and_single_targets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SWEEP_TARGETS", " mypkg.* , other.Model ,")
    assert is_allowed("mypkg.deep.Net")
    assert is_allowed("other.Model")
    for target in ("mypkg2.Net", "other.Model2", "other.Model.evil", "other.Net", "os.system"):
        assert not is_allowed(target)


@pytest.mark.parametrize("pattern", ["*", ".*", "my*", "my*.Net", "mypkg.**"])
def test_a_pattern_that_would_allow_more_than_a_package_is_refused(monkeypatch: pytest.MonkeyPatch, pattern: str):
    monkeypatch.setenv("SWEEP_TARGETS", pattern)
    error = refusal("torch.nn.Linear")
    assert error.key == "SWEEP_TARGETS"
    assert pattern in error.problem


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution that declares an entry point, found the way an installed one is."""
    info = tmp_path / "mypkg-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mypkg\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sweep.targets]\nmine = mypkg\n\n[console_scripts]\nx = another:main\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    targets._entry_point_targets.cache_clear()  # what is installed does not change while a process runs
    yield
    targets._entry_point_targets.cache_clear()


@pytest.mark.usefixtures("installed")
def test_an_installed_package_vouches_for_itself_by_an_entry_point():
    assert is_allowed("mypkg.deep.Net")
    assert not is_allowed("mypkg2.Net")
    assert not is_allowed("another.main")  # an entry point of another group


def test_a_package_without_the_entry_point_is_not_allowed():
    assert not is_allowed("mypkg.deep.Net")
