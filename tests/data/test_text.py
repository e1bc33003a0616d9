from pathlib import Path

import numpy as np
import refusals
from numpy.testing import assert_array_equal

from sweep import ConfigError
from sweep.data.text import text


def refusal(*arguments, **named) -> ConfigError:
    return refusals.refusal(lambda: text(*arguments, **named))


def test_a_text_is_blocks_of_bytes_with_targets_one_byte_later(tmp_path: Path):
    path = tmp_path / "poem.txt"
    path.write_bytes(b"abcdefghijklmnop")
    made = text(str(path), block_size=3)
    assert [bytes(row.astype(np.uint8)) for row in made.x] == [b"abc", b"def", b"ghi", b"jkl", b"mno"]
    assert [bytes(row.astype(np.uint8)) for row in made.y] == [b"bcd", b"efg", b"hij", b"klm", b"nop"]
    assert (made.task, made.name, made.source) == ("language_model", "poem", str(path))
    assert (made.n_tokens, made.out_features, made.in_shape) == (256, 256, (3,))


def test_no_byte_is_a_target_twice(tmp_path: Path):
    (tmp_path / "all").write_bytes(bytes(range(256)))
    targets = text(str(tmp_path / "all"), block_size=7).y.ravel()
    assert_array_equal(targets, np.arange(1, len(targets) + 1))


def test_every_byte_is_a_token_with_a_name_of_its_own(tmp_path: Path):
    path = tmp_path / "binary"
    path.write_bytes(bytes([0, 255, 10, 200] * 9))
    made = text(str(path), block_size=4)
    assert made.x.max() == 255
    assert len(set(made.classes)) == 256
    assert [made.classes[byte] for byte in b"a \n"] == ["a", "0x20", "0x0a"]


def test_bad_texts_are_refused_in_one_line(tmp_path: Path):
    path = tmp_path / "short.txt"
    path.write_bytes(b"x" * 256)
    error = refusal(str(path), block_size=64)
    assert error.key == "data.block_size"
    assert "has 256 bytes, and 4 blocks need 257; lower it, or give a longer text" in error.problem
    path.write_bytes(b"x" * 257)
    assert len(text(str(path), block_size=64).x) == 4
    path.write_bytes(b"")
    assert str(refusal(str(path))) == f"data.path: '{path}' is empty"
    assert refusal(str(tmp_path / "none")).problem.startswith(f"no file '{tmp_path}/none' (looked in ")
    assert "is not a regular file; name one" in refusal(str(tmp_path)).problem
    assert refusal(str(path), block_size=0).key == "data.block_size"
