"""How good the built-in models get: the transformer against an n-gram model on one text, the ResNet on digits.

The text is the language reference in `pydoc_data.topics`, which comes with Python. The n-gram model sees what the
transformer is trained on, and predicts the same bytes.

`python benchmarks/quality.py`
"""

import argparse
import math
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common import at_least, print_setting, print_verdict

from sweep import compose, run_trial
from sweep.config.schema import validate
from sweep.data.split import Part
from sweep.trial.prepare import load_data

ORDER = 3  # of the n-gram model: how many bytes a prediction depends on
BOUND_TEXT = 1.0  # bits per byte, transformer / n-gram model
BOUND_DIGITS = 0.985  # test accuracy: of the median over the seeds
BOUND_SEED = 0.981  # and of each seed
SEEDS = 5
TEXT = ("experiment=text_transformer",)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("text", "digits"))
    only = parser.parse_args().only
    print_setting()
    holds = True
    with tempfile.TemporaryDirectory() as folder:
        if only != "digits":
            holds &= _text(Path(folder))
        if only != "text":
            holds &= _digits(Path(folder))
    return 0 if holds else 1


def _text(folder: Path) -> bool:
    path = folder / "reference.txt"
    path.write_bytes(python_reference())
    overrides = (*TEXT, f"data.path={path}", "tracking=off", f"output_dir={folder}/outputs")
    splits = load_data(validate(compose(overrides))).splits
    ours = [run_trial(compose([*overrides, f"seed={s}"])).metrics["test/bits_per_token"] for s in range(2)]
    print(f"transformer: {' '.join(f'{bits:.4f}' for bits in ours)} bits per byte")
    theirs = {order: ngram_bits(splits.train, splits.test, order) for order in range(ORDER + 2)}
    print("n-gram model: " + ", ".join(f"order {order}: {bits:.4f}" for order, bits in theirs.items()))
    return print_verdict(f"text, bits per byte, worst seed / order {ORDER}", max(ours) / theirs[ORDER], BOUND_TEXT)


def _digits(folder: Path) -> bool:
    overrides = ("experiment=digits_resnet", "tracking=off", f"output_dir={folder}/outputs")
    found = [run_trial(compose([*overrides, f"seed={s}"])).metrics["test/accuracy"] for s in range(SEEDS)]
    print(f"digits: {' '.join(f'{accuracy:.4f}' for accuracy in found)}")
    median = at_least("digits, test accuracy, median of the seeds", statistics.median(found), BOUND_DIGITS, "")
    return at_least("digits, test accuracy, worst seed", min(found), BOUND_SEED, "") and median


def python_reference() -> bytes:
    """Return Python's own documentation of its language as plain text."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics)).encode()


class NGram:
    """A byte-level n-gram model that interpolates all orders (Witten and Bell 1991), the lowest with equal chances.

    p_k(b | c) = (count(c, b) + kinds(c) * p_(k-1)(b | c[1:])) / (count(c) + kinds(c)), where c are the last k bytes and
    kinds(c) is how many different bytes followed them. A context that never occurred leaves p_(k-1).
    """

    def __init__(self, blocks: Sequence[bytes], order: int) -> None:
        """Count. blocks: texts that do not continue each other."""
        self._order = order
        self._pairs = Counter(
            block[i - k : i + 1] for block in blocks for i in range(len(block)) for k in range(min(order, i) + 1)
        )
        self._totals: Counter[bytes] = Counter()
        self._kinds: Counter[bytes] = Counter()
        for pair, n in self._pairs.items():
            self._totals[pair[:-1]] += n
            self._kinds[pair[:-1]] += 1

    def probability(self, context: bytes, byte: bytes) -> float:
        """Return the probability of a byte after the context, of which the last `order` bytes count."""
        p = 1 / 256
        for k in range(min(self._order, len(context)) + 1):
            c = context[len(context) - k :]
            if kinds := self._kinds[c]:
                p = (self._pairs[c + byte] + kinds * p) / (self._totals[c] + kinds)
        return p


def ngram_bits(train: Part, test: Part, order: int) -> float:
    """Return the bits per byte of an n-gram model on the targets of `test`.

    Args:
        train: the split to count in.
        test: the split to predict.
        order: how many bytes a prediction depends on.
    """
    model = NGram(_texts(train), order)
    bits, n = 0.0, 0
    for block in _texts(test):
        for i in range(1, len(block)):  # the first byte is given, as it is to the transformer
            bits -= math.log2(model.probability(block[max(0, i - order) : i], block[i : i + 1]))
            n += 1
    return bits / n


def _texts(part: Part) -> list[bytes]:
    """Return each block with the byte that follows it: the transformer sees no more of a text either."""
    return [bytes([x[0], *y]) for x, y in zip(part.x.tolist(), part.y.tolist(), strict=True)]


if __name__ == "__main__":
    sys.exit(main())
