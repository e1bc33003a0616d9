"""Every command on outputs, options and a repository that somebody else prepared, each step of it watched.

The commands run in processes that note what they touch (sandbox/sitecustomize.py).
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from listener import Listener
from omegaconf import OmegaConf
from processes import empty_store, environment
from zygote import Zygote

from sweep import compose
from sweep.config.schema import validate
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.tracking.journal import Journal
from sweep.tracking.run_recorder import stored_text

pytestmark = pytest.mark.process  # commands, servers, a browser

SECRET = "hush-7b2c"
_HOOKS = Path(__file__).parents[1] / "sandbox"
_SMALL = ("experiment=debug", "trainer.epochs=1", "data.n=96", "trainer.batch_size=16")
_DATASET = {"name": "none", "digest": "0", "source": {"uri": "generated"}, "profile": {}}


class Sandbox:
    """A folder to work in, beside one with private things; `run` runs a command in it, and notes what it touches."""

    def __init__(self, folder: Path, listener: Listener) -> None:
        self.path, self.private, own = folder / "sandbox", folder / "private", folder / "own"
        for each in (self.path, self.private / ".ssh", own):
            each.mkdir(parents=True)
        (self.private / ".ssh" / "id_rsa").write_text(SECRET)
        self.listener, self._log, self._own = listener, own / "touched.log", own
        self._watched = environment(
            **{"SANDBOX": str(self.path), "SANDBOX_LOG": str(self._log), "PYTHONPATH": str(_HOOKS), "SECRET": SECRET},
            **{"HOME": self._made("home"), "TMPDIR": self._made("tmp"), "XDG_CACHE_HOME": self._made("cache")},
            **{"MPLCONFIGDIR": self._made("matplotlib"), "TORCHINDUCTOR_CACHE_DIR": self._made("inductor")},
            PYTHONDONTWRITEBYTECODE="1",
            MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        )
        self._zygote: Zygote | None = None

    def run(self, module: str, *arguments: str) -> tuple[int, str]:
        """Return the exit status and what the command printed; -1 if it does not end."""
        if self._zygote is None:
            self._zygote = Zygote(self._watched)
        try:
            with self._zygote.start(self.path, arguments, self._watched, module) as command:
                out, err = command.communicate()
        except subprocess.TimeoutExpired:
            return -1, "it waits for somebody"
        assert command.returncode is not None
        return command.returncode, out + err

    def touched(self) -> list[str]:
        """What was touched outside, or connected to, since the last call."""
        lines = self._log.read_text().splitlines()
        self._log.write_text("")
        return [*lines, *(["connect the listener"] if self.listener.was_asked() else [])]

    def close(self) -> None:
        if self._zygote is not None:
            self._zygote.close()

    def _made(self, name: str) -> str:
        (self._own / name).mkdir()
        return str(self._own / name)


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    listener = Listener()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "own"))
    sandbox = Sandbox(tmp_path, listener)
    yield sandbox
    sandbox.close()
    listener._socket.close()


def _record(run: RunFolder, *, config: str, output_dir: str = "../..", is_over: bool = True, **start: Any) -> None:
    run.create()
    common = {
        "uid": f"uid of {run.path.name}",
        "name": "n",
        "experiment": "e",
        "params": {},
        "parent": None,
        "tags": {},
    }
    common |= {"dataset": _DATASET, "store": None, "output_dir": output_dir}
    names = ["../../../../private/.ssh", "../../../../private/.ssh/id_rsa", "error.txt", "config.yaml", "plots"]
    with Journal(run.journal) as journal:
        journal.event("start", **(common | start))
        if is_over:
            journal.event("end", status="KILLED", steps=[], values={}, tags={}, artifacts=names)
    run.config.write_text(config)


def _study(folder: Path, overrides: list[str], storage: str | None) -> None:
    study = StudyFolder(folder)
    tags = {"kind": "study", "study": folder.name, "command": "rm -r ~"}
    _record(study.run, config="tracking: {mlflow: true}\n", tags=tags, storage=storage)
    study.best.write_text(OmegaConf.to_yaml({"trial": 0, "values": [1.0], "overrides": overrides}))


def _prepare(sandbox: Sandbox) -> None:
    """Outputs, a folder of options and a repository, each with what would reach out of the sandbox."""
    outputs, url = sandbox.path / "outputs", sandbox.listener.url
    (outputs / "runs").mkdir(parents=True)
    shutil.copy(empty_store(), outputs / "mlflow.db")
    with sqlite3.connect(outputs / "mlflow.db") as store:
        store.execute("UPDATE experiments SET name = 'e', artifact_location = ?", (f"file://{sandbox.private}",))
    leaking = validate(compose([*_SMALL, f"tracking.uri={url}", "output_dir=/nowhere"]))
    leaking.experiment_name = "LEAK"
    config = stored_text(leaking).replace("LEAK", "leak-${oc.env:SECRET}")
    _record(RunFolder(outputs / "runs" / "leaking"), config=config, is_over=False, dataset=None)
    _record(RunFolder(outputs / "runs" / "theirs"), config=config, store=url)
    _record(RunFolder(outputs / "runs" / "away"), config=config, output_dir="../../../../private")
    _record(RunFolder(outputs / "runs" / "names"), config="tracking: {mlflow: true}\n")
    linked = RunFolder(outputs / "runs" / "linked")
    _record(linked, config=config)
    linked.error.symlink_to(sandbox.private / ".ssh" / "id_rsa")
    place = url.removeprefix("http://")
    _study(outputs / "studies" / "served", [*_SMALL, f"tracking.uri={url}"], f"postgresql+psycopg://{place}/db")
    _study(outputs / "studies" / "file", ["experiment_name='leak-${oc.env:SECRET}'"], f"sqlite:///{sandbox.private}/x")
    (outputs / "comparisons").mkdir()
    (outputs / "comparisons" / "c").symlink_to(sandbox.private)
    options = sandbox.path / "options" / "experiment"
    options.mkdir(parents=True)
    program = sandbox.path / "program"
    program.write_text(f"#!/bin/sh\ntouch {sandbox.private}/ran\n")
    program.chmod(0o755)
    environ = {"PATH": str(sandbox.path), "PYTHONPATH": str(sandbox.path), "GIT_EXTERNAL_DIFF": str(program)}
    evil = {"hydra": {"job": {"env_set": environ}}}
    (options / "evil.yaml").write_text(f"# @package _global_\n{OmegaConf.to_yaml(OmegaConf.create(evil))}")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(sandbox.path)]
    (sandbox.path / "tracked.txt").write_text("a\n")
    for words in (["init", "-q"], ["add", "tracked.txt"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    (sandbox.path / "tracked.txt").write_text("b\n")
    for key in ("core.fsmonitor", "diff.external", "core.pager"):
        subprocess.run([*git, "config", key, str(program)], check=True)


def test_the_watcher_notes_what_leaves_the_sandbox(sandbox: Sandbox) -> None:
    port = sandbox.listener.url.rpartition(":")[2]
    reaching = f"""
import os, socket, sqlite3, subprocess, sys
open("inside", "w").close()
open({str(sandbox.private / ".ssh" / "id_rsa")!r}).close()
os.mkdir({str(sandbox.private / "made")!r})
sqlite3.connect("file:{sandbox.private}/made/db?mode=rwc", uri=True)
socket.create_connection(("127.0.0.1", {port})).close()
subprocess.run([sys.executable, "-c", "import os; os.listdir('..')"])
"""
    subprocess.run([sys.executable, "-c", reaching], cwd=sandbox.path, env=sandbox._watched, check=False)
    kinds = [line.rpartition(" by ")[0].removeprefix(" ") for line in sandbox.touched()]
    private = sandbox.private
    assert kinds == [
        f"read {private}/.ssh/id_rsa",
        f"write {private}/made",
        f"write {private}/made/db",
        f"connect ('127.0.0.1', {port})",
        f"read {private.parent}",
        "",
    ]


def test_no_command_leaves_the_sandbox(sandbox: Sandbox) -> None:
    _prepare(sandbox)
    study = ("-m", "hydra.sweeper.n_trials=1", *_SMALL)
    evil = ("--config-dir", "options", "experiment=evil")
    commands: list[tuple[int, str, tuple[str, ...]]] = [
        (0, "sweep.run", ("resume=outputs/runs/leaking",)),
        (2, "sweep.run", ("resume=outputs/runs/theirs",)),
        (2, "sweep.run", ("resume=outputs/runs/away",)),
        (2, "sweep.run", ("resume=outputs/runs/linked",)),
        (2, "sweep.run", evil),
        (2, "sweep.run", ("-m", *evil)),
        (2, "sweep.lr_range", evil),
        (2, "sweep.compare", ("optimizer=sgd,adam", *evil)),
        (2, "sweep.compare", ("optimizer=sgd,adam", "compare.name=c", "compare.n_seeds=2", *study[1:])),
        (0, "sweep.run", (*study, "hydra.sweeper.study_name=served")),
        (2, "sweep.run", ("from_study=file",)),
        (2, "sweep.report", ("file",)),
        (2, "sweep.export", ("file",)),
        (0, "sweep.export", ("outputs/runs/leaking", "--format", "torch_export")),
        (2, "sweep.sync", ()),
    ]
    wrong = []
    for status, module, arguments in commands:
        found, printed = sandbox.run(module, *arguments)
        touched = sandbox.touched()
        if touched or found != status or "Traceback" in printed or SECRET in printed:
            wrong.append(f"{module} {arguments}: {found}\n{printed}\n{touched}")
    assert wrong == [], "\n\n".join(wrong)
    left = [path.relative_to(sandbox.private) for path in sandbox.private.rglob("*")]
    assert sorted(map(str, left)) == [".ssh", ".ssh/id_rsa"]
    kept = [path for path in sandbox.path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in kept if SECRET.encode() in path.read_bytes()] == []
    assert not os.path.lexists("/nowhere")
