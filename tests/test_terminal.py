"""Texts of others, in names, files and records, are shown in a terminal and do nothing in it."""

import io
import logging
import re
from pathlib import Path

import pytest
from processes import quick
from rich.table import Table

from sweep.console import Console
from sweep.record.folder import RunFolder
from sweep.record.journal import Journal
from sweep.terminal import SafeRecord, SafeStream, escaped

ODD = "odd\x1b]0;t\x07\x1b[2J\u202e\x9b2J\r!"
SHOWN = r"odd\x1b]0;t\x07\x1b[2J\u202e\x9b2J\r!"
_SMALL = ("experiment=debug", "trainer.epochs=1", "tracking=off")


def test_each_character_that_a_terminal_acts_on_is_escaped() -> None:
    assert escaped(ODD) == SHOWN
    assert escaped("täb\tand line\n, \u200d and \u00a0, 日本") == "täb\tand line\n, \u200d and \u00a0, 日本"


def test_what_draws_on_a_safe_stream_colours_it_and_texts_do_not() -> None:
    raw = io.BytesIO()
    stream = SafeStream(raw, "utf-8")
    print(ODD, file=stream)
    console = Console(file=stream.styled, force_terminal=True, color_system="standard", width=200)
    table = Table(title="[link=http://x]\x1b[2J")
    table.add_row(ODD, style="red")
    console.print(table, ODD)
    stream.flush()
    written = raw.getvalue().decode()
    assert written.count(SHOWN) == 3
    assert r"[link=http://x]\x1b[2J" in written
    assert "\x1b[31m" in written, "its own"
    plain = re.sub(r"\x1b\[[\d;]*m", "", written)
    assert escaped(plain) == plain


def test_a_traceback_in_a_log_is_escaped_and_holds_no_password() -> None:
    try:
        raise ValueError(f"{ODD} at http://me:hush@host")
    except ValueError as error:
        told = (type(error), error, error.__traceback__)
    record = SafeRecord("n", logging.ERROR, "p", 1, "%s", (ODD,), told)
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
        journal.event("start", store=f"http://{ODD}", output_dir="../..", tags={}, parent=None)
    run.config.write_text("tracking: {mlflow: true}\n")
    return tmp_path


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
        ("sweep.sync", []),
        ("sweep.sync", [f"outputs/{ODD}"]),
    ]
    wrong = []
    for module, arguments in commands:
        done = quick(odd, *arguments, module=module)
        told = done.stdout + done.stderr
        if escaped(told) != told or (r"\x1b]0;t\x07" not in told and "compare.n_seeds=-1" not in arguments):
            wrong.append(f"{module} {arguments}: {told!r}")
    assert wrong == [], "\n\n".join(wrong)
    (log,) = (odd / "outputs" / "runs").glob("*/run.log")
    assert escaped(log.read_text()) == log.read_text()
