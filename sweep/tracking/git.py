"""Runs git in the working directory without running any program that the repository names.

A repository's own configuration can name programs: file system monitors, hooks, filters, differs, transports. The
repository may come from somebody else, so a run in it must not start them.
"""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

_PATIENCE_S = 10
_KEPT = ("PATH", "HOME", "XDG_CONFIG_HOME")  # to find git and the user's own settings
_FIXED = {"LC_ALL": "C", "GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}
_OFF = {
    "core.askPass": "",
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.pager": "cat",
    "core.sshCommand": "false",
    "diff.external": "",
}


def git(*arguments: str) -> str:
    """Return what git prints, or an empty text if it fails or if this directory is not in a repository.

    For a diff, also pass --no-ext-diff and --no-textconv.
    """
    settings = _without_filters()
    return "" if settings is None else _printed(settings, *arguments)


def _without_filters() -> dict[str, str] | None:
    """Return settings that turn off the filters that the repository itself defines. The user's own filters stay.

    Return None if there is no repository, or if its working tree is elsewhere: git would then read files outside it.
    """
    top = _printed(_OFF, "rev-parse", "--show-toplevel")
    if not top:
        return None
    here = Path.cwd()
    found = next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), None)
    if found is None or Path(top).resolve() != found.resolve():
        return None
    listed = _printed(_OFF, "config", "--show-scope", "--null", "--name-only", "--get-regexp", r"^filter\.")
    words = listed.split("\0")
    own = [key for scope, key in zip(words[::2], words[1::2], strict=False) if scope in ("local", "worktree")]
    off = dict(_OFF)
    for driver in {key.rpartition(".")[0] for key in own}:
        off |= {f"{driver}.clean": "", f"{driver}.smudge": "", f"{driver}.process": "", f"{driver}.required": "false"}
    return off


def _printed(settings: Mapping[str, str], *arguments: str) -> str:
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | _FIXED
    environment["GIT_CONFIG_COUNT"] = str(len(settings))  # `-c` would split a name at its first =
    for n, (key, value) in enumerate(settings.items()):
        environment |= {f"GIT_CONFIG_KEY_{n}": key, f"GIT_CONFIG_VALUE_{n}": value}
    try:
        done = subprocess.run(
            ["git", "--no-pager", "--no-optional-locks", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
