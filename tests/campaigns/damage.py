"""Every durable file of a run and a study is damaged in every way, and every command is given what is left.

    python tests/campaigns/damage.py

Allowed are the result of the undamaged files, or an exit status other than 0 and one line. tests/test_damage.py has the
short form.
"""

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from processes import quick

TRAINED = ("experiment=debug", "model.widths=[4]", "tracking=off")
STUDY = ("-m", *TRAINED, "hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1")
_TOLD = ("best val/loss", "best value", "test/loss", "tracked runs below")  # lines that have a command's result
FILES = ("optuna.log", "best.yaml", "config.yaml", "journal.jsonl", "trials/0/config.yaml", "trials/0/journal.jsonl")
FILES += ("trials/1/overrides.yaml", "trials/1/best.pt", "optimization_results.yaml")
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "study": ("sweep.run", STUDY),
    "from_study": ("sweep.run", ("from_study=s",)),
    "report": ("sweep.report", ("s",)),
    "sync": ("sweep.sync", ("outputs",)),
}


def make_study(cwd: Path) -> Path:
    """A finished study in `cwd`."""
    done = quick(cwd, *STUDY)
    assert done.returncode == 0, done.stderr
    return cwd / "outputs" / "studies" / "s"


def damages(data: bytes, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """The file's content, damaged, by what was done to it."""
    drawn = random.Random(seed)
    for share in (0.05, 0.3, 0.5, 0.8, 0.99):
        yield f"cut at {share}", data[: int(share * len(data))]
    flipped = bytearray(data)
    for place in drawn.sample(range(len(data)), min(10, len(data))):
        flipped[place] ^= 1 << drawn.randrange(8)
    yield "ten bits flipped", bytes(flipped)
    lines = data.splitlines(keepends=True)
    middle = len(lines) // 2
    yield "a line doubled", b"".join([*lines[: middle + 1], *lines[middle:]])
    yield "a line of garbage", b"".join([*lines[:middle], b"\xff}garbage{\n", *lines[middle:]])
    yield "emptied", b""


def result(cwd: Path, command: str) -> tuple[int, list[str], str]:
    """The exit status, the lines that say what it came to, and what stands on stderr."""
    module, arguments = COMMANDS[command]
    done = quick(cwd, *arguments, module=module)
    return done.returncode, [line for line in done.stdout.splitlines() if any(t in line for t in _TOLD)], done.stderr


def problem(original: Path, file: str, content: bytes, command: str, right: list[str]) -> str | None:
    """What the command does wrong on a copy of the study whose file has that content; None if nothing."""
    with tempfile.TemporaryDirectory() as folder:
        cwd = Path(folder) / "cwd"  # another folder than the original, whose paths no result shows
        shutil.copytree(original, cwd)
        (cwd / "outputs" / "studies" / "s" / file).write_bytes(content)
        status, told, err = result(cwd, command)
    if "Traceback" in err:
        return f"traceback: {err.splitlines()[-1]}"
    if status == 0:
        told, right = ([line.replace(str(place), "") for line in ls] for ls, place in ((told, cwd), (right, original)))
        return None if told == right else f"other results: {told}"
    n_lines = len([line for line in err.splitlines() if line.startswith("error: ")])
    return None if n_lines == 1 or command == "sync" else f"{n_lines} lines of errors: {err}"


def main() -> int:
    """Prints what is wrong, and how many cases there were. Exit status 1 if anything is."""
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / "original"
        original.mkdir()
        study = make_study(original)
        right = {command: result(original, command)[1] for command in COMMANDS}
        n_cases = n_wrong = 0
        for file in FILES:
            for what, content in damages((study / file).read_bytes()):
                for command in COMMANDS:
                    n_cases += 1
                    if wrong := problem(original, file, content, command, right[command]):
                        n_wrong += 1
                        print(f"{file}, {what}, {command}: {wrong}", flush=True)
    print(f"{n_cases} cases, {n_wrong} wrong")
    return int(n_wrong > 0)


if __name__ == "__main__":
    os.nice(10)
    sys.exit(main())
