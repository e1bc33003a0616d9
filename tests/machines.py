"""Other machines, as far as a study can tell: workers with another host name and an `output_dir` of their own."""

import functools
import pickle
import subprocess
from collections.abc import Sequence
from pathlib import Path

import cloudpickle
import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from processes import environment, zygote
from waiting import PATIENCE_S

from sweep.execution.worker import Worker
from sweep.study.spec import Launching

_WORK = """
import ctypes, pickle, socket, sys

libc = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS, NEW_NAMES, PRIVATE, RECURSIVE = 0x20000, 0x4000000, 1 << 18, 1 << 14  # as <sched.h> and <sys/mount.h> say

def must(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), "cannot become a machine of its own")

must(libc.unshare(NEW_MOUNTS | NEW_NAMES))
must(libc.mount(b"none", b"/", None, PRIVATE | RECURSIVE, None))
must(libc.mount(b"none", sys.argv[5].encode(), b"tmpfs", 0, None))
socket.sethostname(sys.argv[4])
worker = pickle.load(open(sys.argv[1], "rb"))
try:
    result = worker.work(int(sys.argv[3]))
except Exception as error:
    result = error
pickle.dump(result, open(sys.argv[2], "wb"))
"""


@functools.cache
def can_unshare() -> bool:
    tried = ["unshare", "--mount", "--uts", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


class OtherMachine(Launcher):
    """Starts one worker, on a machine of its own: node0, or node1 if it is launched again."""

    def __init__(self, worker: Worker, folder: Path) -> None:
        self._worker, self._folder = worker, folder

    def setup(self, **_: object) -> None: ...

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        return [self._returned(initial_job_idx)]

    def _returned(self, index: int) -> JobReturn:
        pickled, result = self._folder / f"worker-{index}", self._folder / f"result-{index}"
        pickled.write_bytes(cloudpickle.dumps(self._worker))
        outputs = self._worker.plan.folder.path.parent.parent
        script = self._folder / f"machine-{index}.py"
        script.write_text(_WORK)
        words = [str(pickled), str(result), str(index), f"node{index}", str(outputs)]
        with zygote(True).start(Path.cwd(), words, environment(), str(script)) as process:
            _, err = process.communicate(PATIENCE_S)
        assert result.exists(), err
        returned = JobReturn()
        returned.return_value = pickle.loads(result.read_bytes())
        returned.status = JobStatus.FAILED if isinstance(returned._return_value, Exception) else JobStatus.COMPLETED
        (self._folder / f"stderr-{index}").write_text(err)
        return returned


@pytest.fixture
def other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workers of this process's studies run on other machines. Returns a folder with what they printed."""
    if not can_unshare():
        pytest.skip("this needs the right to unshare mounts")
    folder = tmp_path / "launched"
    folder.mkdir()
    monkeypatch.setattr(Launching, "launcher", lambda self, worker, _: OtherMachine(worker, folder))
    return folder
