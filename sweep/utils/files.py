"""Replaces text files atomically, and converts plain lists and dicts to YAML and back."""

import os
import pickle
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from sweep.utils.fsync import fsync
from sweep.utils.private import private


def write_atomic(path: Path, text: str, durable: bool = True, to_be_shown: bool = False) -> None:
    """Replace the content of `path`. A reader sees either the old text or the new one, also after a crash.

    Args:
        path: the file. `path` with the suffix .tmp is written first.
        text: the new content.
        durable: whether this also holds after a crash of the machine, which needs an fsync.
        to_be_shown: whether other users may read the file. If not, only its owner can, even if it was readable before.
    """
    tmp = path.with_name(path.name + ".tmp")
    with open(tmp, "w", encoding="utf-8", opener=None if to_be_shown else private) as file:
        file.write(text)
        file.flush()
        if durable:
            fsync(file.fileno())
    os.replace(tmp, path)


class _Dumper(yaml.CSafeDumper):
    """A dumper that quotes texts such as 1e-3, which OmegaConf reads as a number and YAML 1.1 as a text."""


class _Loader(yaml.CSafeLoader):
    """A loader that reads such numbers as OmegaConf does."""


for _kind in (_Dumper, _Loader):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def to_yaml(plain: Any) -> str:
    """Return plain lists and dicts as YAML, as OmegaConf writes them.

    This avoids building OmegaConf's nodes, which takes 20 ms for a config. The parts of a dict are cached, since most
    parts of a study's configs are the same.
    """
    if isinstance(plain, dict) and plain:
        return "".join(_part_to_yaml(pickle.dumps({key: part})) for key, part in plain.items())
    return _to_yaml(plain)


@lru_cache(maxsize=256)
def _part_to_yaml(pickled: bytes) -> str:
    return _to_yaml(pickle.loads(pickled))


def _to_yaml(plain: Any) -> str:
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def from_yaml(text: str) -> Any:
    """Return the plain lists and dicts that `to_yaml` wrote. `${...}` in texts is not resolved."""
    return yaml.load(text, Loader=_Loader)
