"""Keeps torch from loading its compiler in a process that compiles nothing.

Torch's first optimizer imports the package torch._dynamo, only to say which of its functions are not to be compiled.
That takes about as long as `import torch` itself, and 75 MB. `postpone` installs a stand-in that also marks functions
as not to be compiled. The first use of any other attribute loads the real package.

If a new torch asks for more of the package, tests/utils/test_late_compiler.py fails. Everything still works: the
package is then loaded at once.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_NAME = "torch._dynamo"


def postpone() -> None:
    """Postpone the loading of the compiler in this process, unless torch is there already.

    Only sweep's own commands and workers call this. A program that imports torch keeps it as it is.
    """
    if "torch" not in sys.modules and _NAME not in sys.modules:
        sys.modules[_NAME] = _StandIn(_NAME)
        sys.meta_path.insert(0, _Submodules())


class _StandIn(ModuleType):
    """What torch's optimizers and modes use of torch._dynamo. As long as nothing is compiled, it has no effect."""

    def graph_break(self, *args: Any, **kwargs: Any) -> None:
        if _is_loaded():
            _load().graph_break(*args, **kwargs)

    def disable(self, fn: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        """Return a function that does what `fn` does, and is not compiled once the compiler is there."""
        if fn is None or isinstance(fn, type):
            return _load().disable(fn, *args, **kwargs)
        disabled = functools.cache(lambda: _load().disable(fn, *args, **kwargs))

        @functools.wraps(fn)
        def call(*values: Any, **named: Any) -> Any:
            return (disabled() if _is_loaded() else fn)(*values, **named)

        return call

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # which others ask of every module
            raise AttributeError(name)
        return getattr(_load(), name)


class _Submodules(MetaPathFinder):
    """Finds parts of the package that came with it.

    To import a part, Python asks the stand-in where the package is. That loads the package with the part, which Python
    would then load a second time.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        is_there = name.startswith(f"{_NAME}.") and name in sys.modules
        return ModuleSpec(name, _Loaded()) if is_there else None


class _Loaded(Loader):
    """Loads nothing, since the module came with its package."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = sys.modules[spec.name]
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None and isinstance(spec.loader, _Loaded):  # torch's settings keep their own
            module.__spec__ = spec.loader_state


def _is_loaded() -> bool:
    return not isinstance(sys.modules.get(_NAME), _StandIn)


def _load() -> ModuleType:
    """Load the package, unless it is there, and return it."""
    if not _is_loaded():
        del sys.modules[_NAME]
    return importlib.import_module(_NAME)
