"""Shared by all tests: real processes, real stores, nothing beyond loopback."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tester's own settings must not reach the tests."""
    for name in ("MLFLOW_TRACKING_URI", "SWEEP_TARGETS", "HYDRA_FULL_ERROR", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def sweep_run(tmp_path: Path) -> Command:
    """Runs `python -m sweep.run` in an empty directory, with outputs below it; returns the finished process."""

    def run(*overrides: str, cwd: Path = tmp_path, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sweep.run", *overrides],
            cwd=cwd,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


def the_run(tmp_path: Path) -> Path:
    """The folder of the only run below `tmp_path`/outputs."""
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    return folder
