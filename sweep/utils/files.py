"""Text files that are replaced as a whole, and plain lists and dicts as YAML."""

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
    """Replaces `path`; a reader, or a crash, sees the old text or the new.

    durable: whether that holds for a crash of the machine too, which costs a wait for the disk. to_be_shown: whether
    others may read it; else it is the owner's alone, whatever it was before.
    """
    tmp = path.with_name(path.name + ".tmp")
    with open(tmp, "w", encoding="utf-8", opener=None if to_be_shown else private) as file:
        file.write(text)
        file.flush()
        if durable:
            fsync(file.fileno())
    os.replace(tmp, path)


class _Dumper(yaml.CSafeDumper):
    """Quotes a text that OmegaConf would read as a number, such as 1e-3, which YAML 1.1 takes for a text."""


class _Loader(yaml.CSafeLoader):
    """Reads such a number as OmegaConf does."""


for _kind in (_Dumper, _Loader):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def to_yaml(plain: Any) -> str:
    """Lists and dicts as OmegaConf writes them, without making its nodes first (20 ms for a config).

    Part by part, since most parts of the configs of a study are the same.
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
    """The plain lists and dicts in what `to_yaml` wrote; a text stays as it is, whatever `${...}` it holds."""
    return yaml.load(text, Loader=_Loader)
