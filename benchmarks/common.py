"""Shared by the benchmarks: time complete commands in turn, and print the machine and the versions."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence


def time_in_turn(commands: Mapping[str, Sequence[str]], rounds: int, cwd: str) -> dict[str, list[float]]:
    """Return the seconds of each command by round. Each round runs all commands, so that noise affects all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median over rounds of ours / theirs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def print_verdict(name: str, value: float, bound: float, unit: str = "x") -> bool:
    """Print a figure beside its upper bound. Return whether the bound holds."""
    holds = value <= bound
    print(f"{name}: {value:.3f}{unit} (bound {bound:g}{unit}) {'ok' if holds else 'MISSED'}")
    return holds


def at_least(name: str, value: float, bound: float, unit: str = "x") -> bool:
    """Print a figure beside its lower bound. Return whether the bound holds."""
    holds = value >= bound
    print(f"{name}: {value:.3f}{unit} (bound: at least {bound:g}{unit}) {'ok' if holds else 'MISSED'}")
    return holds


def print_setting() -> None:
    """Print the machine and the versions, for RESULTS.md."""
    from sweep.tracking.provenance import provenance_tags

    tags = provenance_tags([])
    versions = ", ".join(f"{k.removeprefix('version.')} {v}" for k, v in tags.items() if k.startswith("version."))
    print(f"{os.cpu_count()} cores, {platform.system()}, Python {tags['python']}, {versions}")
    print(f"commit {tags.get('git.commit', 'unknown')[:12]}{' + changes' if tags.get('git.dirty') == 'true' else ''}")
