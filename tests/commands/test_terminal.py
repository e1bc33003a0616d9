"""Texts of others, in names, files and records, are shown in a terminal and do nothing in it."""

import logging
import re
from pathlib import Path

import pytest
from processes import quick
from rich.table import Table

from sweep.tracking.folders import RunFolder
from sweep.tracking.journal import Journal
from sweep.utils.console import Console
from sweep.utils.terminal import SafeRecord, escaped, say

ODD = "odd\x1b]0;t\x07\x1b[2J\u202e\x9b2J\r!"
SHOWN = r"odd\x1b]0;t\x07\x1b[2J\u202e\x9b2J\r!"
_SMALL = ("experiment=debug", "trainer.epochs=1", "tracking=off")


def test_each_character_that_a_terminal_acts_on_is_escaped() -> None:
    assert escaped(ODD) == SHOWN
    assert escaped("täb\tand line\n, \u200d and \u00a0, 日本") == "täb\tand line\n, \u200d and \u00a0, 日本"


def test_a_console_colours_what_it_draws_and_obeys_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=True, color_system="standard", width=200)
    table = Table(title="[link=http://x]\x1b[2J")
    table.add_row(ODD, style="red")
    console.print(table, ODD)
    say(ODD)
    say(ODD, err=True)
    written, errors = capsys.readouterr()
    assert written.count(SHOWN) == 3
    assert errors == f"{SHOWN}\n"
    assert r"[link=http://x]\x1b[2J" in written
    assert "\x1b[31m" in written, "its own"
    plain = re.sub(r"\x1b\[[\d;]*m", "", written)
    assert escaped(plain) == plain


@pytest.mark.process
def test_what_a_model_of_the_users_own_prints_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(_COLOURFUL)
    model = ("model._target_=mine.Colourful", "~model.widths", "~model.activation", "~model.dropout")
    done = quick(tmp_path, *_SMALL, *model, PYTHONPATH=str(tmp_path), SWEEP_TARGETS="mine.*")
    assert done.returncode == 0, done.stderr
    assert "\x1b[32mgreen\x1b[0m" in done.stdout
    assert "\x1b[A50 %" in done.stderr


_COLOURFUL = """
import sys
from torch import nn


class Colourful(nn.Linear):
    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        print("\x1b[32mgreen\x1b[0m")
        print("\x1b[A50 %", end="", file=sys.stderr)
"""


def test_a_traceback_in_a_log_is_escaped_and_holds_no_password() -> None:
    try:
        raise ValueError(f"{ODD} at http://me:hush@host")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = SafeRecord("n", logging.ERROR, "p", 1, "%s", (ODD,), info)
    line = logging.Formatter().format(record)
    assert line.count(SHOWN) == 2
    assert "http://me:***@host" in line
    assert escaped(line) == line


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with odd names and texts in it."""
    (tmp_path / "odd.csv").write_text(f"a,{ODD},y\n1,2,3\n4,{ODD},6\n".replace("\r", ""), newline="")
    options = tmp_path / "options" / "optimizer"
    options.mkdir(parents=True)
    (options / f"{ODD}.yaml").write_text("# @package _global_\noptimizer:\n  _target_: torch.optim.SGD\n  lr: 0.01\n")
    study = tmp_path / "outputs" / "studies" / ODD
    study.mkdir(parents=True)
    for name in ("best.yaml", "journal.jsonl"):
        (study / name).touch()
    run = RunFolder(tmp_path / "outputs" / "runs" / ODD)
    run.create()
    with Journal(run.journal) as journal:
        common = {"uid": "u", "name": "n", "experiment": "e", "params": {}, "tags": {}, "output_dir": "../.."}
        journal.event("start", **common, store=f"http://{ODD}")
    run.config.write_text("tracking: {mlflow: true}\n")
    return tmp_path


@pytest.mark.process
def test_no_command_sends_the_terminal_what_it_was_given(odd: Path) -> None:
    quoted = f'"{ODD}"'
    commands = [
        ("sweep.run", ["data=table", "data.path=odd.csv", "data.target=y", *_SMALL]),
        ("sweep.run", ["data=table", "data.path=odd.csv", f"data.target={quoted}", *_SMALL]),
        ("sweep.run", ["from_study=none"]),
        ("sweep.run", [f'resume="outputs/none/{ODD}"']),
        ("sweep.run", ["--config-dir", "options", "optimizer=none"]),
        ("sweep.run", ["--config-dir", "options", f"optimizer={quoted}", *_SMALL]),
        ("sweep.run", ["--config-dir", "options", "-m", f"optimizer=adam,{quoted}", "hydra.sweeper.dry_run=true"]),
        ("sweep.compare", ["--config-dir", "options", f"optimizer=adam,{quoted}", "compare.n_seeds=-1"]),
        ("sweep.lr_range", [ODD]),
        ("sweep.report", ["none"]),
        ("sweep.export", [f"outputs/{ODD}"]),
        ("sweep.sync", []),
        ("sweep.sync", [f"outputs/{ODD}"]),
    ]
    wrong = []
    for module, arguments in commands:
        done = quick(odd, *arguments, module=module)
        printed = done.stdout + done.stderr
        if escaped(printed) != printed or (r"\x1b]0;t\x07" not in printed and "compare.n_seeds=-1" not in arguments):
            wrong.append(f"{module} {arguments}: {printed!r}")
    assert wrong == [], "\n\n".join(wrong)
    (log,) = (odd / "outputs" / "runs").glob("*/run.log")
    assert escaped(log.read_text()) == log.read_text()
