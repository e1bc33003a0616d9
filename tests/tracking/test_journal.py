"""sweep/tracking/journal.py: what was appended stays, whatever happens to the process or to the disk."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweep.tracking import journal
from sweep.tracking.journal import Journal
from sweep.utils.errors import DamagedJournal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


@contextmanager
def opened(path: Path) -> Iterator[Journal]:
    made = Journal(path)
    try:
        yield made
    finally:
        made.close()


def records(path: Path) -> list[journal.Record]:
    return [record for record, _ in journal.read(path)]


START = {"uid": "u", "name": "n", "experiment": "e", "output_dir": ".", "store": None, "params": {}, "tags": {}}
_FIELDS = {"start": START, "metrics": {"steps": [], "values": {}}, "end": {}}


def a_small_journal(path: Path) -> None:
    with opened(path) as made:
        made.event("start", **START | {"name": "größer"})
        made.metrics([1, 2, 3], {"step/loss": [0.5, 0.25, 0.125], "step/lr": [1e-3, 2e-3, 3e-3]})
        made.metrics([1], {"val/loss": [0.4]})
        made.event("end", status="FINISHED")


def test_what_is_appended_is_read_back_by_metric(path: Path) -> None:
    a_small_journal(path)
    curves = journal.curves(path)
    assert list(curves) == ["step/loss", "step/lr", "val/loss"]
    np.testing.assert_array_equal(curves["step/lr"].steps, [1, 2, 3])
    np.testing.assert_array_equal(curves["step/lr"].values, [1e-3, 2e-3, 3e-3])
    assert (curves["val/loss"].steps.dtype, curves["val/loss"].values.dtype) == (np.int64, np.float64)
    assert [record["kind"] for record in records(path)] == ["start", "metrics", "metrics", "end"]
    assert journal.first(path, "start") == records(path)[0]
    assert records(path)[0]["name"] == "größer"


def test_the_last_end_is_that_of_the_last_attempt(path: Path) -> None:
    assert (journal.last_end(path), journal.status(path), journal.last_of(path, "start", "end")) == (None, None, None)
    found = []
    with opened(path) as made:
        for i, kind in enumerate(("start", "metrics", "start", "end", "metrics", "start", "end", "end")):
            status = {3: "KILLED", 6: "FAILED", 7: "FINISHED"}.get(i, f"{kind} {i}")
            made.event(kind, status=status, **_FIELDS[kind])
            found.append(journal.last_end(path))
    assert [end and end["status"] for end in found] == [None] * 3 + ["KILLED", "KILLED", None, "FAILED", "FINISHED"]
    assert [end["status"] for end in journal.records(path, "end")] == ["KILLED", "FAILED", "FINISHED"]
    assert (journal.last_of(path, "start") or {})["status"] == "start 5"
    assert journal.status(path) == "FINISHED"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.floats(), min_size=1, max_size=20))
def test_every_number_comes_back_bit_for_bit(values: list[float], path: Path) -> None:
    path.unlink(missing_ok=True)
    with opened(path) as made:
        made.metrics(range(1, len(values) + 1), {"val/loss": values})
    np.testing.assert_array_equal(journal.curves(path)["val/loss"].values, values)


def test_each_append_is_on_file_before_the_journal_is_closed(path: Path) -> None:
    with opened(path) as made:
        made.event("start", **START | {"name": "a"})
        assert [record["kind"] for record in records(path)] == ["start"]
        made.metrics([1], {"val/loss": [0.4]})
        assert len(records(path)) == 2


def test_a_torn_last_line_costs_only_itself_wherever_it_is_torn(path: Path) -> None:
    a_small_journal(path)
    whole = path.read_bytes()
    ends = [offset for _, offset in journal.read(path)]
    kept = records(path)
    for n_bytes in range(len(whole)):
        path.write_bytes(whole[:n_bytes])
        n_whole = sum(end <= n_bytes for end in ends)
        assert records(path) == kept[:n_whole]
        with opened(path) as made:
            made.event("start", **START | {"name": "again"})
        assert records(path)[:-1] == kept[:n_whole], "the torn line would have swallowed the new one"
        assert records(path)[-1]["name"] == "again"


def test_a_reader_goes_on_from_the_offset_where_it_stopped(path: Path) -> None:
    a_small_journal(path)
    pairs = list(journal.read(path))
    assert pairs[-1][1] == path.stat().st_size
    for i, (_, offset) in enumerate(pairs):
        assert list(journal.read(path, offset)) == pairs[i + 1 :]


def test_a_line_still_being_written_is_read_once_it_is_whole(path: Path) -> None:
    a_small_journal(path)
    size = path.stat().st_size
    with opened(path) as made:
        made.event("end", status="KILLED")
    os.truncate(path, path.stat().st_size - 1)  # a whole object, but its line has not ended
    assert list(journal.read(path, size)) == []
    with open(path, "a") as file:
        file.write("\n")
    assert [record["status"] for record, _ in journal.read(path, size)] == ["KILLED"]


def test_steps_recorded_before_a_crash_stand_once(path: Path) -> None:
    with opened(path) as made:
        made.metrics([1, 2, 3], {"step/loss": [0.3, 0.2, 0.1], "step/lr": [1.0, 1.0, 1.0]})
        made.metrics([1], {"train/loss": [0.2], "val/loss": [0.5]})
    with opened(path) as made:  # epoch 1 is trained again, from a checkpoint before it
        made.metrics([1, 2], {"step/loss": [0.3, 0.2], "step/lr": [1.0, 1.0]})
        made.metrics([3, 4], {"step/loss": [0.1, 0.05], "step/lr": [1.0, 1.0]})
        made.metrics([1], {"train/loss": [0.2], "val/loss": [0.5]})
        made.metrics([2], {"train/loss": [0.1], "val/loss": [0.4]})
        made.metrics([2], {"val/loss": [0.9]})  # a training function reports it twice
    curves = journal.curves(path)
    assert curves["step/loss"].steps.tolist() == [1, 2, 3, 4]
    assert curves["step/loss"].values.tolist() == [0.3, 0.2, 0.1, 0.05]
    assert curves["step/lr"].steps.tolist() == [1, 2, 3, 4]
    assert curves["val/loss"].steps.tolist() == [1, 2]
    assert curves["val/loss"].values.tolist() == [0.5, 0.4]


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from sweep.tracking.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (5_100, 5_100))
journal = Journal(Path(sys.argv[1]))
n = 0
try:
    while True:
        journal.metrics([n + 1], {"val/loss": [n + 0.5], "x" * 200: [0.5]})
        n += 1
except OSError as error:
    print(n, error.errno)
try:
    journal.metrics([10_000], {"x" * 6_000: [1.0]})
except OSError as error:
    print(n, error.errno)
journal.event("end", status="KILLED")  # there is room for a short one, behind whole lines
"""


@pytest.mark.process
def test_a_full_disk_is_an_oserror_and_what_was_recorded_stays_readable(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _FULL_DISK, str(path)], check=True, capture_output=True, text=True)
    (n, errno_of_row), (_, errno_of_long_row) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert os.strerror(errno_of_row) == os.strerror(errno_of_long_row) == "File too large"
    assert n > 10
    assert journal.curves(path)["val/loss"].steps.tolist() == list(range(1, n + 1))
    assert [record["kind"] for record in records(path)] == ["metrics"] * n + ["end"]
    assert path.read_bytes().endswith(b"\n")


def test_the_status_is_that_of_the_last_attempt(path: Path) -> None:
    assert journal.status(path) is None
    with opened(path) as made:
        made.event("start", **START | {"name": "first attempt"})
        assert journal.status(path) is None
        made.event("end", status="KILLED")
        assert journal.status(path) == "KILLED"
        made.event("start", **START | {"name": "second attempt"})
        assert journal.status(path) is None
        made.metrics([1], {"val/loss": [0.1]})
        made.event("end", status="FINISHED")
    assert journal.status(path) == "FINISHED"
    start = journal.first(path, "start")
    assert start is not None
    assert start["name"] == "first attempt"
    assert journal.first(path, "no such kind") is None


def test_a_journal_that_is_not_there_is_empty(path: Path) -> None:
    assert records(path) == []
    assert journal.curves(path) == {}
    assert journal.first(path, "start") is None
    assert not path.exists()


def test_a_record_is_dated_in_milliseconds(path: Path) -> None:
    a_small_journal(path)
    written_s = path.stat().st_mtime
    assert all(math.isclose(record["time"] / 1000, written_s, abs_tol=3600) for record in records(path))


def an_old_journal(path: Path) -> None:
    """As they were before lines had checksums."""
    start = {"kind": "start", "time": 1, **START}
    rows = [{"kind": "metrics", "time": 2, "steps": [e], "values": {"val/loss": [1 / e]}} for e in range(1, 4)]
    path.write_text("".join(json.dumps(record) + "\n" for record in (start, *rows)))


def damages_of(whole: bytes) -> Iterator[tuple[str, bytes, int]]:
    """A name, the damaged file, and the number of the line to be named."""
    lines = whole.splitlines(keepends=True)
    for i in range(len(lines)):
        before, behind, n = b"".join(lines[:i]), b"".join(lines[i + 1 :]), i + 1
        yield f"doubled {n}", before + lines[i] * 2 + behind, n + 1
        yield f"garbage before {n}", before + b"\xff garbage\n" + lines[i] + behind, n
        yield f"no record before {n}", before + b"[1, 2]\n" + lines[i] + behind, n
        yield f"deep before {n}", before + b"[" * 100_000 + b"\n" + lines[i] + behind, n
        yield f"empty line before {n}", before + b"\n" + lines[i] + behind, n
        if behind:
            yield f"missing {n}", before + behind, n


def damaged_line(path: Path) -> int | None:
    """The number, from 1, of the line that a check of the whole journal names."""
    try:
        journal.check(path)
    except DamagedJournal as error:
        return error.line
    return None


def test_every_damaged_line_is_named_and_what_is_whole_behind_it_can_still_be_read(path: Path) -> None:
    a_small_journal(path)
    whole, kept = path.read_bytes(), records(path)
    for name, data, line in damages_of(whole):
        path.write_bytes(data)
        with pytest.raises(DamagedJournal, match=f"line {line} of .*damaged") as caught:
            journal.curves(path)
        assert (caught.value.line, damaged_line(path)) == (line, line), name
        with pytest.raises(DamagedJournal):
            Journal(path)
        assert path.read_bytes() == data, name
        damage: list[DamagedJournal] = []
        found = [record for record, _ in journal.read(path, damage=damage)]
        assert [error.line for error in damage] == [line], name
        missing = [record for record in kept if record not in found]
        assert found == [record for record in kept if record not in missing], name
        assert len(missing) == name.startswith("missing"), name


@pytest.mark.slow
def test_no_flipped_bit_is_read_as_other_numbers(path: Path) -> None:
    a_small_journal(path)
    whole, kept = path.read_bytes(), records(path)
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        damage: list[DamagedJournal] = []
        found = [record for record, _ in journal.read(path, damage=damage)]
        assert damage, f"bit {bit} of {bytes(data)}"
        assert all(record in kept for record in found), bit


def test_a_reader_that_goes_on_finds_what_was_written_before_its_offset(path: Path) -> None:
    a_small_journal(path)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(whole + lines[-1])
    with pytest.raises(DamagedJournal, match=r"line 5 of .*twice"):
        list(journal.read(path, len(whole)))
    path.write_bytes(whole.replace(b"start", b"  start"))
    with pytest.raises(DamagedJournal):
        list(journal.read(path, len(whole) - len(lines[-1])))


def test_a_journal_without_checksums_is_read_and_goes_on_with_them(path: Path) -> None:
    an_old_journal(path)
    old = path.read_bytes()
    assert [record["kind"] for record in records(path)] == ["start", *["metrics"] * 3]
    assert journal.last(path) == records(path)[-1]
    with opened(path) as made:
        made.metrics([3, 4], {"val/loss": [1 / 3, 1 / 4]})
    assert path.read_bytes().startswith(old)
    assert journal.curves(path)["val/loss"].values.tolist() == [1, 1 / 2, 1 / 3, 1 / 4]
    assert [pair[0] for pair in journal.read(path, len(old))] == records(path)[-1:]
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"0.25", b"0.26"))
    assert damaged_line(path) == 5
    path.write_bytes(whole + old.splitlines(keepends=True)[-1])
    assert damaged_line(path) == 6
    for line in (
        b'{"kind": "metrics", "steps": [4], "values": {"a": []}, "time": 1}\n',
        b"{}\n",
        old.splitlines()[-1] + b"\n",
    ):
        path.write_bytes(old + line)
        assert damaged_line(path) == 5


def test_the_last_record_is_that_of_a_whole_reading_wherever_the_file_ends(path: Path) -> None:
    a_small_journal(path)
    with opened(path) as made:
        made.metrics(range(10, 1010), {"step/loss": [1 / i for i in range(10, 1010)]})  # longer than what is read first
        made.event("start", **START | {"name": "again"})
    whole = path.read_bytes()
    for size in (*range(700), *range(len(whole) - 100, len(whole) + 1), len(whole) // 2):
        path.write_bytes(whole[:size])
        assert journal.last(path) == (records(path) or [None])[-1], size
