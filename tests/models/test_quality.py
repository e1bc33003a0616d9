"""The short form of benchmarks/quality.py, and its n-gram model."""

import random
from pathlib import Path

import pytest
from conftest import RecordingTrial, make_loop
from quality import NGram, ngram_bits

from sweep.config.nodes import Split
from sweep.data.split import divide
from sweep.data.text import text


def test_an_ngram_model_interpolates_its_orders():
    model = NGram([b"aab", b"ab"], order=1)
    p_b = (2 + 2 / 256) / (5 + 2)  # of five bytes, of two kinds, two are b
    assert model.probability(b"", b"b") == pytest.approx(p_b)
    assert model.probability(b"a", b"b") == pytest.approx((2 + 2 * p_b) / (3 + 2))  # a is followed by a, b and b
    assert model.probability(b"b", b"b") == model.probability(b"?", b"b") == pytest.approx(p_b)
    total = sum(model.probability(b"a", bytes([byte])) for byte in range(256))
    assert total == pytest.approx(1)


@pytest.mark.slow
def test_a_transformer_sees_further_back_than_an_ngram_model(tmp_path: Path):
    path, rng = tmp_path / "words.txt", random.Random(0)
    words = (rng.choice("ABCD") for _ in range(1500))
    path.write_text("".join(f"{letter}....{letter.lower()}" for letter in words))
    data = ("data=text", f"data.path={path}", "data.block_size=12", "trainer.batch_size=32", "trainer.epochs=8")
    model = ("model=transformer", "model.width=32", "model.n_layers=1", "scheduler=onecycle", "scheduler.max_lr=1e-2")
    loop = make_loop(*model, "optimizer=adamw", base=data)
    loop.run(RecordingTrial())
    bits = loop.test(None)["test/bits_per_token"]
    splits = divide(text(str(path), block_size=12), Split())
    assert ngram_bits(splits.train, splits.test, order=3) > 0.95  # it cannot know the second letter of a word
    assert 2 / 6 < bits < 0.75  # the first letters alone cost 2 bits of 6 bytes
