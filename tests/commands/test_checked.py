"""Files that are read back: damaged ones are refused, those of earlier versions are read."""

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sweep.tracking.chunks import SyncCursor
from sweep.tracking.folders import RunFolder
from sweep.training import checkpoint
from sweep.utils.checked_file import load_checked, read_checked, write_checked
from sweep.utils.errors import Damaged

TEXT = "seed: 0\nname: Zoë\nlist:\n- 1e-3\n"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checked") / "config.yaml"
    write_checked(path, TEXT)
    return path


def flipped(data: bytes, n: int, seed: int) -> bytes:
    """With `n` bits flipped, each in a byte of its own."""
    drawn, found = random.Random(seed), bytearray(data)
    for place in drawn.sample(range(len(data)), n):
        found[place] ^= 1 << drawn.randrange(8)
    return bytes(found)


def test_a_text_comes_back_as_it_was_written_and_is_yaml_to_everybody(file):
    assert read_checked(file, "key", "start anew") == TEXT
    assert load_checked(file, "key", "start anew")["name"] == "Zoë"


@given(seed=st.integers(0, 10**6), n=st.integers(1, 10))
def test_flipped_bits_never_give_another_text(seed, n, file):
    damaged = file.with_name("damaged.yaml")
    damaged.write_bytes(flipped(file.read_bytes(), n, seed))
    with pytest.raises(Damaged, match=r"^key: '.*damaged.yaml' is damaged \(.*\); start anew$"):
        read_checked(damaged, "key", "start anew")


@given(length=st.integers(0, 170))
def test_nor_does_a_part_of_it(length, file):
    whole, damaged = file.read_bytes(), file.with_name("part.yaml")
    damaged.write_bytes(whole[: min(length, len(whole) - 1)])
    with pytest.raises(Damaged):
        read_checked(damaged, "key", "start anew")


@pytest.mark.parametrize("text", ["", " \n", "a: [", "- 1\n", "\0", "a: !!python/name:os.system\n", "3\n"])
def test_what_is_no_mapping_is_refused(text, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(Damaged):
        load_checked(tmp_path / "x.yaml", "key", "start anew")


def test_a_file_that_is_no_utf_8_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_bytes("name: Zoë\n".encode("latin-1"))
    with pytest.raises(Damaged, match="is not UTF-8"):
        load_checked(tmp_path / "x.yaml", "key", "start anew")


@pytest.mark.parametrize("first", ["seed: 0", "# my own\nseed: 0", "- hydra.searchpath=[file:///a/rather/long/path]"])
def test_a_file_of_an_earlier_version_is_read(first, tmp_path):
    (tmp_path / "x.yaml").write_text(first)
    assert read_checked(tmp_path / "x.yaml", "key", "start anew") == first


def test_a_flipped_bit_in_a_checkpoint_is_refused_or_without_effect(tmp_path):
    path, weights = tmp_path / "checkpoint.pt", torch.arange(1000.0)
    checkpoint.save(path, {"weights": weights, "epoch": 3})
    whole = path.read_bytes()
    n_refused = 0
    for seed in range(300):
        path.write_bytes(flipped(whole, 1, seed))
        try:
            state = checkpoint.load(path)
        except Damaged:
            n_refused += 1
        else:
            assert torch.equal(state["weights"], weights)
            assert state["epoch"] == 3
    assert n_refused > 200


def test_what_was_sent_is_not_taken_from_a_damaged_file(tmp_path):
    run = RunFolder(tmp_path)
    sent = SyncCursor(run, "store")
    sent.run_id, sent.offset = "0" * 32, 1234
    sent.save()
    whole = run.sync_state.read_bytes()
    for seed in range(300):
        run.sync_state.write_bytes(flipped(whole, 1 + seed % 10, seed))
        found = SyncCursor(run, "store")
        assert (found.run_id, found.offset) in [(None, 0), ("0" * 32, 1234)]
    state = {"run_id": "0" * 32, "offset": 99, "attempted": True}
    run.sync_state.write_text(json.dumps({"store": state}))  # of an earlier version
    assert SyncCursor(run, "store").offset == 99
