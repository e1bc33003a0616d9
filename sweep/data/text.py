"""Your own text, byte by byte."""

import os
from pathlib import Path

import numpy as np

from sweep.data.samples import Samples
from sweep.utils.errors import ConfigError, one_line

_N_BYTES = 256
_FEWEST_BLOCKS = 4  # two to train on, one each for validation and test
_CLASSES = tuple(chr(byte) if 32 < byte < 127 else f"0x{byte:02x}" for byte in range(_N_BYTES))


def text(path: str, block_size: int = 64) -> Samples:
    """Read a file and cut it into blocks. Each byte is a token, and each token is predicted from those before it.

    The tokens are all 256 bytes, whether they occur or not. So a model can be applied to any text, models of different
    texts have the same shape, and which bytes occur in the validation and the test split stays unknown to it.

    Block i of x is the bytes from i * block_size on, and the same block of y begins one byte later. So no byte is a
    target twice. Bytes at the end that do not fill a block are left out.

    Args:
        path: of the file, in any encoding.
        block_size: the length of a block, in bytes; at least 1.

    Raises:
        ConfigError: the file cannot be read, or has fewer than four blocks.
    """
    if block_size < 1:
        raise ConfigError("data.block_size", f"must be >= 1, got {block_size}")
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        what = f"'{file}' is not a regular file; name one" if file.exists() else f"no file '{file}'"
        raise ConfigError("data.path", f"{what} (looked in {Path.cwd()})")
    try:
        tokens = np.fromfile(file, np.uint8)
    except OSError as error:
        raise ConfigError("data.path", f"cannot read '{file}': {one_line(error)}") from error
    if not len(tokens):
        raise ConfigError("data.path", f"'{file}' is empty")
    n_blocks = (len(tokens) - 1) // block_size
    if n_blocks < _FEWEST_BLOCKS:
        fewest = _FEWEST_BLOCKS * block_size + 1
        message = f"'{file}' has {len(tokens)} bytes, and {_FEWEST_BLOCKS} blocks need {fewest}"
        raise ConfigError("data.block_size", f"{message}; lower it, or give a longer text")
    used = n_blocks * block_size
    return Samples(
        name=file.stem,
        task="language_model",
        x=tokens[:used].reshape(n_blocks, block_size),
        y=tokens[1 : used + 1].reshape(n_blocks, block_size),
        classes=_CLASSES,
        source=str(file.resolve()),
    )
