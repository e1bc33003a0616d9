"""The place of a worker on its node: its GPU and its cores, and what a scheduler has already given to it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from sweep.execution.place import place_of
from sweep.search.resources import Resources

SLURM = {"SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_NODEID": "1", "SLURM_LOCALID": "1", "SLURM_CPUS_ON_NODE": "8"}
BOUND = {"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": "1"}
UNBOUND = {"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": "4,5"}

Taken = Callable[..., tuple[str | None, int | None]]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """Return a function: the GPUs and threads of a worker with that number and those shares, in that environment."""
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "CUDA_VISIBLE_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))

    def take(
        index: int, n_shares: int, variables: Mapping[str, str], resources: Resources | None = None
    ) -> tuple[str | None, int | None]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        place = place_of(index, n_shares, resources)
        with replace(place, n_threads=None).taken():  # the threads of this process stay
            return os.environ.get("CUDA_VISIBLE_DEVICES"), place.n_threads

    return take


@pytest.mark.parametrize(
    ("index", "n_shares", "variables", "expected"),
    [
        (0, 1, {"CUDA_VISIBLE_DEVICES": "3,5"}, ("3,5", None)),
        (1, 2, {"CUDA_VISIBLE_DEVICES": "3,5"}, ("5", 8)),
        (6, 4, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, ("2", 4)),  # launched in place of worker 2
        (5, 1, {"CUDA_VISIBLE_DEVICES": "7"}, ("7", None)),  # as Ray gives it
        (0, 1, {"CUDA_VISIBLE_DEVICES": ""}, ("", None)),  # as Ray does without GPUs
        (0, 1, SLURM | UNBOUND, ("5", 4)),
        (0, 1, SLURM | UNBOUND | {"SLURM_LOCALID": "0"}, ("4", 4)),
        (0, 1, SLURM | UNBOUND | {"SLURM_NODEID": "2", "SLURM_LOCALID": "0"}, ("4,5", 8)),  # alone on its node
        (0, 1, SLURM | BOUND, ("1", 4)),
        (0, 1, SLURM | UNBOUND | {"SLURM_GPUS_PER_TASK": "2"}, ("4,5", 4)),
        (0, 1, SLURM | UNBOUND | {"SLURM_CPUS_PER_TASK": "3"}, ("5", 3)),
        (1, 2, SLURM | UNBOUND, ("5", 2)),  # two joblib workers in each of two tasks
    ],
)
def test_a_worker_takes_its_share_of_what_the_scheduler_has_not_divided(
    index: int,
    n_shares: int,
    variables: Mapping[str, str],
    expected: tuple[str | None, int | None],
    taken: Taken,
) -> None:
    assert taken(index, n_shares, variables) == expected


@pytest.mark.parametrize(
    ("index", "n_shares", "resources", "variables", "expected"),
    [
        (0, 1, Resources(cpus=4, gpus=1), {"CUDA_VISIBLE_DEVICES": "3,5"}, ("3", 4)),  # alone, and no more than that
        (1, 2, Resources(gpus=2), {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, ("2,3", 8)),
        (3, 4, Resources(gpus=0.5), {"CUDA_VISIBLE_DEVICES": "0,1"}, ("1", 4)),
        (2, 3, Resources(gpus=0.3), {"CUDA_VISIBLE_DEVICES": "0,1"}, ("0", 5)),
        (1, 2, Resources(gpus=0), {"CUDA_VISIBLE_DEVICES": "0,1"}, ("", 8)),
        (9, 1, Resources(cpus=2, gpus=0.5), {"CUDA_VISIBLE_DEVICES": "6"}, ("6", 2)),  # as Ray gives it
        (0, 1, Resources(cpus=4, gpus=1), SLURM | UNBOUND, ("5", 4)),
        (0, 1, Resources(gpus=0.5), SLURM | UNBOUND, ("4", 4)),  # two tasks on the first of them
        (0, 1, Resources(gpus=1), SLURM | BOUND, ("1", 4)),
    ],
)
def test_a_worker_takes_the_resources_that_it_was_given(
    index: int,
    n_shares: int,
    resources: Resources,
    variables: Mapping[str, str],
    expected: tuple[str | None, int | None],
    taken: Taken,
) -> None:
    assert taken(index, n_shares, variables, resources) == expected
