"""Shared by all tests: real processes, real stores, nothing beyond loopback."""

import functools
import io
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from hypothesis import settings

from sweep.training.trial import UnrecordedTrial
from sweep.utils.errors import Interrupted
from sweep.utils.signals import StopRequest

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from stores import Study
    from torch import nn
    from zygote import ForkedUploadProcess

    from sweep.config.schema import Config
    from sweep.tracking.upload_process import UploadProcess
    from sweep.training.loop import TrainingLoop
    from sweep.trial.outcome import Outcome
    from sweep.trial.recorded import Report

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # a server that is down is known to be, at once
os.environ["OMP_NUM_THREADS"] = "1"  # of the tests alone: more threads only wait for each other, beside other tests

settings.register_profile("sweep", deadline=None)  # a busy machine is no failure
settings.load_profile("sweep")

_POSTGRESQL = "postgresql+psycopg://127.0.0.1:5432/test"  # of the machine's own server, where it has one

# One file is one process's (--dist loadfile): the longest begin first, so that none is left alone at the end.
_LONGEST_FIRST = ("test_study", "test_study_faults", "test_run", "test_resume", "test_storage", "test_mlflow")
_LONGEST_FIRST += (
    "test_uploaded_studies",
    "test_upload_process",
    "test_packed",
    "test_report",
    "test_loop",
    "test_trial",
)

Command = Callable[..., subprocess.CompletedProcess[str]]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For `-n auto`: half as many again as there are cores, since tests wait for processes a fifth of the time."""
    n_cores = len(os.sched_getaffinity(0))
    return n_cores + n_cores // 2


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # of pytest-xdist, whose workers take the environment from here
        from compositions import sharing

        shared = ExitStack()
        shared.enter_context(sharing())
        config.add_cleanup(shared.close)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Keep the bytecode of the tests and of what they import, even where Python is told to keep none.

    Compiling and rewriting all tests takes as long as all other work of their collection.
    """
    with patch.object(sys, "dont_write_bytecode", False):
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


_STARTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn")
_ASKED_OF_THE_MACHINE = ("git", "lscpu")  # in passing, by whatever records or counts
_started: list[str] = []


def _note_start(event: str, args: tuple[Any, ...]) -> None:
    if event in _STARTS:
        program = os.fspath(args[0]) if event == "subprocess.Popen" else event
        if os.path.basename(os.fsdecode(program)) not in _ASKED_OF_THE_MACHINE:
            _started.append(os.fsdecode(program))


sys.addaudithook(_note_start)


@pytest.fixture(autouse=True)
def _unmarked_tests_start_no_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """So that `make test-fast` is what it says.

    Looked at only there: torch starts compilers, and the first test that needs MLflow the upload process of the others,
    whichever these are.
    """
    n_before = len(_started)
    yield
    if "not process" in request.config.option.markexpr:
        assert _started[n_before:] == [], "mark the test as one of processes: @pytest.mark.process"


@pytest.fixture(scope="session", autouse=True)
def _upload_processes_are_forked() -> Iterator[None]:
    """Those of trials and studies in this process, like those of `processes.quick`: their imports take seconds."""
    from sweep.tracking import upload_process

    def popen(command: Sequence[str], *, stderr: IO[bytes], **_: object) -> "ForkedUploadProcess":
        from processes import zygote

        return zygote(True).start_upload_process(stderr)

    with patch.object(upload_process, "subprocess", SimpleNamespace(PIPE=subprocess.PIPE, Popen=popen)):
        yield


@pytest.fixture(scope="module", autouse=True)
def _compositions_are_remembered(request: pytest.FixtureRequest) -> Iterator[None]:
    """But for the tests of how a config is composed."""
    from compositions import remember, shared_folder

    with nullcontext() if request.path.parent.name == "config" else remember(shared_folder()):
        yield


@pytest.fixture
def _tracking_uri_is_left_unset() -> Iterator[None]:
    yield
    if uris := sys.modules.get("mlflow.tracking._tracking_service.utils"):
        assert uris._tracking_uri is None


@pytest.fixture(autouse=True)
def _own_environment(
    _tracking_uri_is_left_unset: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tester's own settings must not reach the tests. Those marked with `targets` trust the code that it names."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "SWEEP_TARGETS", "HYDRA_FULL_ERROR", "OMP_NUM_THREADS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    if (trusted := request.node.get_closest_marker("targets")) is not None:
        monkeypatch.setenv("SWEEP_TARGETS", trusted.args[0])


@pytest.fixture
def sweep_run(tmp_path: Path) -> Command:
    """Runs `python -m sweep.run` in an empty directory, with outputs below it; returns the finished process."""

    def run(
        *overrides: str, cwd: Path = tmp_path, timeout: float = 300, **env: str
    ) -> subprocess.CompletedProcess[str]:
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


SMALL = ("data.n=96", "model.widths=[8]", "trainer.batch_size=16", "trainer.epochs=4")  # 5 updates an epoch
OVERSHOOTING = ("optimizer=sgd", "scheduler=constant", "optimizer.lr=0.9", "trainer.epochs=12")  # best in the middle


def make_loop(
    *overrides: str,
    base: tuple[str, ...] = SMALL,
    make_model: "Callable[[], nn.Module] | None" = None,
) -> "TrainingLoop":
    """What `run_trial` trains, SMALL unless the overrides say otherwise: 68 samples, the last batch has 4.

    If torch's default type is another one than float32, the optimizer has its state in that.

    make_model: makes another model than the config says.
    """
    import torch

    from sweep.training.runtime import seed_generators
    from sweep.trial import build
    from sweep.trial.prepare import load_data, prepared

    config = _config((*base, *overrides))
    config.tracking.step_points = 1_000_000  # all of them
    model = nullcontext() if make_model is None else patch.object(build, "model", lambda *_: make_model())
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # the type of the data, on which `prepared` tries the model
    try:
        with model, prepared(config, load_data(config)) as loop:
            pass
    finally:
        torch.set_default_dtype(default)
    if default != torch.float32:
        loop.optimizer = build.optimizer(config.optimizer, loop.model.to(default))
    seed_generators(config.trainer.seed, "train")  # as in `prepared`, which restores the generators
    return loop


@functools.cache
def _config(overrides: tuple[str, ...]) -> "Config":
    from sweep import compose
    from sweep.config.schema import validate

    return validate(compose(overrides))


def as_file(state: Mapping[str, Any]) -> bytes:
    """A state as a checkpoint's file would keep it."""
    import torch

    file = io.BytesIO()
    torch.save(dict(state), file)
    return file.getvalue()


class RecordingTrial(UnrecordedTrial):
    """A trial that keeps what it gets: (loss, lr) by step, metrics by epoch. What it gets again must be the same.

    stop: asks for a stop, which ends the trial once it has saved. on_save: called with the state.
    """

    def __init__(
        self,
        after_epoch: Callable[[int], object] = lambda epoch: None,
        *,
        stop: StopRequest | None = None,
        on_save: Callable[[Mapping[str, Any]], object] = lambda state: None,
        saves: bool = False,
    ) -> None:
        self.points: dict[int, tuple[float, float]] = {}
        self.epochs: dict[int, Mapping[str, float]] = {}
        self._after_epoch, self._stop, self._on_save, self._saves = after_epoch, stop or StopRequest(), on_save, saves

    @classmethod
    def again(cls, earlier: "RecordingTrial", **more: Any) -> "RecordingTrial":
        """Continues what another has recorded."""
        made = cls(**more)
        made.points, made.epochs = earlier.points, earlier.epochs
        return made

    def log(self, metrics: Mapping[str, Any], step: Any) -> None:
        for n, *point in zip(step, metrics["step/loss"], metrics["step/lr"], strict=True):
            assert self.points.setdefault(n, (point[0], point[1])) == tuple(point)

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        assert self.epochs.setdefault(epoch, metrics) == metrics
        self._after_epoch(epoch)

    @property
    def should_stop(self) -> bool:
        return self._stop.signum is not None

    @property
    def should_save(self) -> bool:
        return self._saves or self.should_stop

    def save(self, epoch: int, state: Mapping[str, Any]) -> None:
        self._on_save(state)
        if self._stop.signum is not None:
            raise Interrupted(self._stop.signum)

    def curve(self, name: str) -> list[float]:
        return [metrics[name] for metrics in self.epochs.values()]


@pytest.fixture
def float64() -> Iterator[None]:
    """Torch keeps some of an optimizer's state in the default type."""
    import torch

    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with an empty MLflow store, which the tests of a file share."""
    from processes import with_store

    return with_store(tmp_path_factory.mktemp("outputs"))


@pytest.fixture
def database(outputs: Path) -> Path:
    return outputs / "mlflow.db"


@pytest.fixture
def study(outputs: Path, request: pytest.FixtureRequest) -> "Study":
    """A study of the test's own."""
    from stores import Study

    return Study(outputs, request.node.name)


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    from browser import chromium

    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def upload_process(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[UploadProcess]":
    """One helper process for all trials that run inside the test process."""
    from sweep.tracking.upload_process import UploadProcess

    upload_process = UploadProcess(tmp_path_factory.mktemp("uploads"))
    yield upload_process
    upload_process.close()


@pytest.fixture
def small_trial(tmp_path: Path, upload_process: "UploadProcess") -> "Callable[..., Outcome]":
    """Runs a SMALL trial in this process, untracked unless the overrides say otherwise, with outputs below tmp_path."""
    from sweep import compose, run_trial

    def run(*overrides: str, report: "Report | None" = None) -> "Outcome":
        cfg = compose(["tracking=off", f"output_dir={tmp_path}/outputs", *SMALL, *overrides])
        return run_trial(cfg, report, upload_process=upload_process)

    return run


_KILLED = """
import os, signal, sys
from sweep import compose, run_trial

def report(epoch, value):
    if epoch == 3:
        os.kill(os.getpid(), signal.SIGKILL)

run_trial(compose(sys.argv[1:]), report)
"""


def kill_a_trial(tmp_path: Path, *overrides: str) -> Path:
    """A SMALL trial in a process of its own, killed as it reports its third epoch of 4; its folder.

    Untracked unless the overrides say otherwise.
    """
    overrides = ("tracking=off", f"output_dir={tmp_path}/outputs", *SMALL, *overrides)
    done = subprocess.run([sys.executable, "-c", _KILLED, *overrides], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return the_run(tmp_path)


@pytest.fixture
def postgresql() -> Iterator[str]:
    """The URL of an empty database."""
    with _fresh_database() as url:
        yield url


@pytest.fixture
def another_postgresql() -> Iterator[str]:
    with _fresh_database() as url:
        yield url


@contextmanager
def _fresh_database() -> Iterator[str]:
    import sqlalchemy
    from sqlalchemy.exc import OperationalError

    pytest.importorskip("psycopg")
    server = sqlalchemy.create_engine(
        _POSTGRESQL, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool, connect_args={"connect_timeout": 2}
    )
    name = f"sweep_test_{secrets.token_hex(6)}"
    try:
        with server.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
    except OperationalError as error:
        if os.environ.get("SWEEP_NEEDS_POSTGRESQL") == "1":  # as in .ci/run
            pytest.fail(f"there must be a PostgreSQL server here, but: {error.orig}", pytrace=False)
        pytest.skip(f"no PostgreSQL: {error.orig}")
    yield server.url.set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
