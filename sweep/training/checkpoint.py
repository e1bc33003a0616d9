"""Checkpoints: they are written atomically, and reading one runs no code that it contains."""

import io
import os
import random
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sweep.training.trial import OF_FUNCTION
from sweep.utils.errors import ConfigError, Damaged, one_line
from sweep.utils.fsync import check_archive, fsync

FORMAT = 1
_LOADABLE = (int, float, complex, bool, str, bytes, type(None), torch.Tensor, torch.nn.Parameter, torch.Size)


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace `path` atomically, and return once the data are on the disk. Raises OSError if the disk is full."""
    data = io.BytesIO()
    torch.save({"format": FORMAT, **state}, data)  # in memory: to a full disk, torch fails with a RuntimeError
    tmp = path.with_name(path.name + ".tmp")
    try:
        with open(tmp, "wb") as file:
            file.write(data.getbuffer())
            file.flush()
            fsync(file.fileno())  # a rename alone does not order the data before the name
        os.replace(tmp, path)
    except OSError:
        tmp.unlink(missing_ok=True)  # frees its space on the full disk
        raise


_RESUME = "start a new run, or remove only that file and resume: the run is trained again from its beginning"


def load(path: Path, key: str = "resume", remedy: str = _RESUME) -> dict[str, Any]:
    """Return the saved state, on the CPU.

    Args:
        path: the file.
        key: the config key that an error names.
        remedy: what to do if the file is damaged.

    Raises:
        Damaged: the file's content is not what was saved.
        ConfigError: the file is intact, but is not a checkpoint of this format.
    """
    try:
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # given a foreign file, an unpickler may raise anything
        raise Damaged(key, path, one_line(error, 120), remedy) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ConfigError(key, f"'{path}' is not a checkpoint of this version of sweep; start a new run")
    return state


def dumps(state: Mapping[str, Any]) -> bytes:
    """Return a state that `unloadable` accepts as bytes, for another process."""
    data = io.BytesIO()
    torch.save(dict(state), data)
    return data.getvalue()


def loads(data: bytes) -> dict[str, Any]:
    """Return the state that `dumps` was given, on the CPU."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def kinds(model: object, optimizer: object, schedule: object) -> dict[str, str]:
    """Return each part's class name. Most optimizers and schedulers load another class's state without an error."""
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    return {part: type(made).__qualname__ for part, made in parts.items()}


def check_kinds(state: dict[str, Any], own: dict[str, str]) -> None:
    """Raise ConfigError unless the checkpoint was saved by parts of the same classes. own: as from `kinds`."""
    for part, kind in own.items():
        saved = state.get("kinds", {}).get(part)
        if saved != kind:
            raise ConfigError("resume", f"the checkpoint has another {part} than the config ({saved}, not {kind})")


def random_states() -> dict[str, Any]:
    """Return the state of every generator that a model or your own code may draw from.

    Many numbers are in a tensor: `torch.save` takes about a microsecond for each object.
    """
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # your own code may draw from it
    version, words, gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "python": [version, torch.tensor(words), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Restore what `random_states` returned. CUDA's states are skipped if this machine has no GPU."""
    torch.set_rng_state(states["torch"])
    version, words, gauss = states["python"]
    random.setstate((version, tuple(map(int, words)), gauss))  # earlier versions saved a tuple
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def with_random_states(state: Mapping[str, Any], reported: int) -> dict[str, Any]:
    """Return the state that a user's function saves, with the states of the random generators.

    Args:
        state: what the function gives.
        reported: the last epoch that the function reported; -1 before the first.
    """
    return {**state, OF_FUNCTION: {"random": random_states(), "reported": reported}}


def restored_random_states(state: dict[str, Any]) -> dict[str, Any]:
    """Restore the random generators from what `with_random_states` returned. Return the rest of the state."""
    kept = state.pop(OF_FUNCTION, None)
    if kept is not None:
        set_random_states(kept["random"])
    return state


def unloadable(state: Mapping[str, Any]) -> str | None:
    """Return the first part of a state that `load` would refuse, such as "state['net'], a Linear"; None without one."""
    odd = _odd("state", dict(state))
    if odd is None:
        return None
    data = io.BytesIO()
    try:
        torch.save(dict(state), data)
        data.seek(0)
        torch.load(data, map_location="cpu", weights_only=True)
    except Exception:  # a class of the user's own may raise anything
        return odd
    return None


def _odd(name: str, value: Any) -> str | None:
    """Return the first part that is not of a kind that can be loaded for certain, with its class; None if none is."""
    if type(value) in (dict, OrderedDict):
        parts = value.items()
    elif type(value) in (list, tuple):
        parts = enumerate(value)
    else:
        return None if type(value) in _LOADABLE else f"{name}, a {type(value).__name__}"
    return next((odd for key, part in parts if (odd := _odd(f"{name}[{key!r}]", part)) is not None), None)
