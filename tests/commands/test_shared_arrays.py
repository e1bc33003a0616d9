"""sweep/utils/shared_arrays.py: arrays that several processes of a machine hold once."""

import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from sweep.utils.shared_arrays import SharedArrays, shared


def sent(value: Any) -> Any:
    """What another process would get."""
    return pickle.loads(pickle.dumps(value))


@pytest.fixture
def held() -> Iterator[list[SharedArrays]]:
    """Files to close."""
    files: list[SharedArrays] = []
    yield files
    for file in files:
        file.close()


def large() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    columns = np.asfortranarray(rng.normal(size=(1_500_000, 3)))
    return {"x": columns, "same": columns, "y": rng.integers(0, 9, 7), "names": ["a"]}


def test_arrays_are_mapped_as_they_are(held: list[SharedArrays]) -> None:
    value = large()
    file = shared(value)
    assert file is not None
    held.append(file)
    found, other = sent(file).load(), sent(file).load()
    assert found["names"] == ["a"]
    assert found["x"] is found["same"], "an array that is there twice is held once"
    for name in ("x", "y"):
        assert_array_equal(found[name], value[name])
        assert found[name].dtype == value[name].dtype
        assert found[name].flags.f_contiguous == value[name].flags.f_contiguous
        assert found[name].ctypes.data % 64 == value[name].ctypes.data % 64, "sums may be rounded by it"
    found["x"][:] = 0  # by a model that works in place
    assert_array_equal(other["x"], value["x"])


def memory_at(address: int, kind: str) -> int:
    """The size of this process's mapping at the address, in KiB."""
    is_there = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if borders := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_there = int(borders[1], 16) <= address < int(borders[2], 16)
        elif is_there and line.startswith(f"{kind}:"):
            return int(line.split()[1])
    raise LookupError(address)


def test_two_processes_hold_the_arrays_once(held: list[SharedArrays]) -> None:
    """The pages belong to the file, not to the process, even after they have been read."""
    file = shared(large())
    assert file is not None
    held.append(file)
    found = sent(file).load()["x"]
    assert found.sum() != 0
    assert memory_at(found.ctypes.data, "Rss") >= found.nbytes // 1024
    assert memory_at(found.ctypes.data, "Anonymous") == 0


def test_texts_beside_large_arrays_are_sent_to_each() -> None:
    value = {"x": np.zeros((12, 2**20), np.float32), "groups": np.array([f"patient {i}" for i in range(10**5)], object)}
    held = shared(value)
    assert held is not None
    assert sent(held).load()["groups"].tolist() == value["groups"].tolist()
    held.close()


def test_small_arrays_are_not_worth_a_file() -> None:
    assert shared({"x": np.zeros(1000)}) is None


def test_without_room_or_permission_each_process_loads_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    value = large()
    assert shared({**value, "way": lambda: None}) is None  # it cannot be pickled
    assert shared({**value, "x": np.zeros((9_000_000, 2))[:, 0]}) is None  # not contiguous: it would be sent each time
    full = os.statvfs_result((4096, 4096, 10**6, 100, 100, 1, 1, 1, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    assert shared(value) is None


def test_a_file_that_is_not_the_one_that_was_written_is_not_read(held: list[SharedArrays], tmp_path: Path) -> None:
    file = shared(large())
    assert file is not None
    held.append(file)
    other, copy = sent(file), tmp_path / "copy"
    copy.write_bytes(Path(file.__dict__["_path"]).read_bytes())
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def found_at(path: Path) -> Any:
        other.__dict__["_path"] = str(path)  # where another machine may have anything
        return other.load()

    assert found_at(copy) is not None, "the case needs a copy that could be read"
    os.truncate(copy, 2**20)
    assert found_at(copy) is None
    copy.write_bytes(b"x" * len(Path(file.__dict__["_path"]).read_bytes()))
    assert found_at(copy) is found_at(fifo) is found_at(tmp_path) is found_at(tmp_path / "none") is None
    gone = sent(file)
    file.close()
    assert gone.load() is None
