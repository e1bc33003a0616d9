"""sweep/training/checkpoint.py: a checkpoint is whole or not there, and never runs what is in it."""

import errno
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from conftest import RecordingTrial, make_loop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweep.training import checkpoint
from sweep.utils.checked_file import damage_of
from sweep.utils.errors import ConfigError, Damaged


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pt"


def test_what_was_saved_is_loaded(path: Path) -> None:
    state = {"weights": {"w": torch.randn(3, 2)}, "losses": [0.1, 1e-300], "epoch": 3, "best": None}
    checkpoint.save(path, state)
    loaded = checkpoint.load(path)
    assert torch.equal(loaded["weights"]["w"], state["weights"]["w"])
    assert (loaded["losses"], loaded["epoch"], loaded["best"]) == ([0.1, 1e-300], 3, None)


def test_a_crash_before_the_rename_leaves_the_old_checkpoint(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(path, {"epoch": 1})

    def crash(*paths: Path) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"epoch": 2})
    assert checkpoint.load(path)["epoch"] == 1
    monkeypatch.undo()
    checkpoint.save(path, {"epoch": 3})
    assert checkpoint.load(path)["epoch"] == 3
    assert os.listdir(path.parent) == [path.name]


_FULL_DISK = """
import errno, resource, signal, sys, torch
from pathlib import Path
from sweep.training import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    checkpoint.save(Path(sys.argv[1]), {"weights": torch.zeros(100_000)})
except OSError as error:
    sys.exit(error.errno)
"""


@pytest.mark.process
def test_a_full_disk_is_an_oserror_and_leaves_the_old_checkpoint_alone(path: Path) -> None:
    checkpoint.save(path, {"epoch": 1})
    done = subprocess.run([sys.executable, "-c", _FULL_DISK, str(path)], check=False, capture_output=True, text=True)
    assert done.returncode == errno.EFBIG, done.stderr
    assert checkpoint.load(path)["epoch"] == 1
    assert os.listdir(path.parent) == [path.name]  # half a file would only take up room


def test_a_truncated_checkpoint_is_refused_wherever_it_ends(path: Path) -> None:
    checkpoint.save(path, make_loop().state_dict())
    complete = path.read_bytes()
    for n_bytes in {0, 1, 2, 4, 64, *range(100, len(complete), len(complete) // 20), len(complete) - 1}:
        path.write_bytes(complete[:n_bytes])
        with pytest.raises(ConfigError, match="is damaged") as caught:
            checkpoint.load(path)
        assert caught.value.key == "resume"
        assert "\n" not in str(caught.value)


class _Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize(("before", "behind"), [(b"x", b""), (b"", b"x"), (b"", b"\n" * 30)])
def test_bytes_before_and_behind_a_checkpoint_are_damage(before: bytes, behind: bytes, path: Path) -> None:
    """Torch reads such a file as if they were not there."""
    checkpoint.save(path, {"weight": torch.ones(3)})
    path.write_bytes(before + path.read_bytes() + behind)
    with pytest.raises(Damaged):
        checkpoint.load(path)
    assert damage_of(path) is not None


def test_a_foreign_file_is_refused_and_nothing_in_it_runs(path: Path) -> None:
    touched = path.with_name("touched")
    writers = {
        "text": lambda: path.write_text("epoch,loss\n1,0.5\n"),
        "pickle": lambda: path.write_bytes(pickle.dumps(_Malicious(touched))),
        "torch file with code": lambda: torch.save({"format": 1, "model": _Malicious(touched)}, path),
        "weights alone": lambda: torch.save({"layer.weight": torch.zeros(2)}, path),
        "a tensor": lambda: torch.save(torch.zeros(2), path),
        "another format": lambda: torch.save({"format": 0, "epoch": 1}, path),
    }
    for name, write in writers.items():
        write()
        with pytest.raises(ConfigError, match=str(path)) as caught:
            checkpoint.load(path)
        assert caught.value.key == "resume", name
        assert "\n" not in str(caught.value), name
    assert not touched.exists()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.binary(max_size=40))
def test_any_bytes_are_refused_in_one_line(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("model.widths=[9]", "model"),
        ("model.widths=[8,8]", "model"),
        ("optimizer=sgd", "optimizer"),
        ("optimizer=adamw", "optimizer"),
        ("scheduler=plateau", "schedule"),
        ("scheduler=onecycle", "schedule"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(change: str, part: str, path: Path) -> None:
    loop = make_loop("trainer.epochs=1")
    loop.run(RecordingTrial())
    checkpoint.save(path, loop.state_dict())
    make_loop("trainer.epochs=1").load_state_dict(checkpoint.load(path))
    with pytest.raises(ConfigError, match=f"another {part} than the config") as caught:
        make_loop("trainer.epochs=1", change).load_state_dict(checkpoint.load(path))
    assert caught.value.key == "resume"
    assert "\n" not in str(caught.value)


def test_best_weights_are_no_checkpoint_to_resume_from(path: Path) -> None:
    loop = make_loop("trainer.epochs=1")
    best = loop.run(RecordingTrial())
    checkpoint.save(path, {"model": best.weights, "epoch": best.epoch, "value": best.value})
    with pytest.raises(ConfigError) as caught:
        make_loop().load_state_dict(checkpoint.load(path))
    assert caught.value.key == "resume"


def test_every_generators_state_survives_the_file(path: Path) -> None:
    def draw() -> list[float]:
        legacy = np.random.standard_normal(3).tolist()  # noqa: NPY002  # an odd number: it keeps one back
        return [torch.rand(1).item(), torch.randn(5)[0].item(), random.random(), random.gauss(), *legacy]

    draw()
    checkpoint.save(path, {"random": checkpoint.random_states()})
    expected = draw()
    assert draw() != expected
    checkpoint.set_random_states(checkpoint.load(path)["random"])
    assert draw() == expected
