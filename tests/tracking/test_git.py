"""Git asked about a repository that somebody else made: none of its programs may run."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sweep.tracking.git import git
from sweep.tracking.provenance import uncommitted_diff

pytestmark = pytest.mark.process  # commands, servers, a browser

Git = Callable[..., None]


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A program that leaves a file behind where it was run, and passes its input on."""
    program = tmp_path / "trap"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\nexec cat\n")
    program.chmod(0o755)
    return program


@pytest.fixture
def repository(tmp_path: Path, trap: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """A repository with a changed file, which is the working directory; returns what runs git in it."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)

    run("init", "--quiet")
    (folder / ".gitattributes").write_text("* filter=a=b.c diff=d\n")
    (folder / "file").write_text("before\n")
    run("add", ".")
    run("commit", "--quiet", "-m", "first")
    (folder / "file").write_text("after\n")
    return run


@pytest.mark.parametrize(
    "setting",
    [
        *("core.fsmonitor", "core.pager", "diff.external", "diff.d.command", "diff.d.textconv"),
        *("filter.a=b.c.clean", "filter.a=b.c.process", "filter.a=b.c.smudge"),
    ],
)
def test_a_program_of_the_repository_is_not_run(repository: Git, trap: Path, setting: str) -> None:
    repository("config", setting, str(trap))
    repository("config", f"{setting.rpartition('.')[0]}.required", "true")
    assert git("rev-parse", "HEAD")
    assert git("status", "--porcelain") == "M file"
    assert "+after" in uncommitted_diff()
    assert not (trap.parent / "sprung").exists()


def test_a_hook_is_not_run(repository: Git, trap: Path) -> None:
    for name in ("post-index-change", "fsmonitor-watchman"):
        hook = Path(".git/hooks") / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_bytes(trap.read_bytes())
        hook.chmod(0o755)
    assert git("status", "--porcelain") == "M file"
    assert not (trap.parent / "sprung").exists()


@pytest.mark.parametrize("name", ["GIT_EXTERNAL_DIFF", "GIT_SSH_COMMAND", "GIT_PAGER"])
def test_a_program_of_the_environment_is_not_run(
    repository: Git, trap: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, str(trap))
    assert "+after" in uncommitted_diff()
    assert not (trap.parent / "sprung").exists()


def test_a_missing_object_is_not_fetched(repository: Git, trap: Path) -> None:
    repository("config", "core.repositoryFormatVersion", "1")
    repository("config", "extensions.partialClone", "origin")
    repository("config", "remote.origin.promisor", "true")
    repository("config", "protocol.ext.allow", "always")
    repository("config", "remote.origin.url", f"ext::{trap}")
    blob = subprocess.run(["git", "rev-parse", "HEAD:file"], check=True, capture_output=True, text=True).stdout.strip()
    (Path(".git/objects") / blob[:2] / blob[2:]).unlink()
    assert uncommitted_diff() == ""
    assert not (trap.parent / "sprung").exists()


def test_a_working_tree_elsewhere_is_not_read(repository: Git, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("private\n")
    repository("config", "core.worktree", str(tmp_path))
    assert git("rev-parse", "HEAD") == ""
    assert uncommitted_diff() == ""


def test_filters_of_the_user_stay(repository: Git, trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(trap.parent))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (trap.parent / ".gitconfig").write_text(f'[filter "a=b.c"]\n  clean = {trap}\n')
    assert git("status", "--porcelain") == "M file"
    assert (trap.parent / "sprung").exists()
