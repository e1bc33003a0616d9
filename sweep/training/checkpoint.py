"""Checkpoints: written whole or not at all, read without running anything that is in them."""

import io
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sweep.utils.errors import ConfigError, Damaged, one_line
from sweep.utils.fsync import check_archive, fsync

FORMAT = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Replaces `path` atomically; returns once the data are on the disk. Raises OSError where it finds no room."""
    data = io.BytesIO()
    torch.save({"format": FORMAT, **state}, data)  # on a full disk its own writing ends in a RuntimeError
    tmp = path.with_name(path.name + ".tmp")
    try:
        with open(tmp, "wb") as file:
            file.write(data.getbuffer())
            file.flush()
            fsync(file.fileno())  # a rename alone does not order the data before the name
        os.replace(tmp, path)
    except OSError:
        tmp.unlink(missing_ok=True)  # it takes up the room that is missing
        raise


def load(path: Path) -> dict[str, Any]:
    """The saved state, on the CPU. Raises Damaged for a file that is not as it was saved, or ConfigError."""
    remedy = "start a new run, or remove that file alone and resume: the run is trained from its beginning, as before"
    try:
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler trips over a foreign file in any way
        raise Damaged("resume", path, one_line(error, 120), remedy) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ConfigError("resume", f"'{path}' is no checkpoint of this version of sweep; start a new run")
    return state


def kinds(model: object, optimizer: object, schedule: object) -> dict[str, str]:
    """Class names; most optimizers and schedulers load another one's state without a word."""
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    return {part: type(made).__qualname__ for part, made in parts.items()}


def check_kinds(state: dict[str, Any], own: dict[str, str]) -> None:
    """Raises ConfigError unless the checkpoint was saved by parts of the same kinds."""
    for part, kind in own.items():
        saved = state.get("kinds", {}).get(part)
        if saved != kind:
            raise ConfigError("resume", f"the checkpoint is of another {part} than the config ({saved}, not {kind})")


def random_states() -> dict[str, Any]:
    """The states of every generator that a model or a user's code may draw from."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # a user's code may draw from it
    states = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
