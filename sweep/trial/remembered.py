"""The data of a study's trials, loaded once for all trials of a process, and held once for several workers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sweep.config.schema import Config
from sweep.data import Datasets, Samples
from sweep.trial.prepare import Data, data_key, divided, load_samples, samples_key
from sweep.utils.shared_arrays import SharedArrays, shared


class RememberedData:
    """A `load_data` that remembers the last data it loaded, also for another split: folds differ in that only.

    It pickles without the data. Inside `shared`, it pickles with where other processes find them.
    """

    def __init__(self) -> None:
        self._key: str | None = None
        self._data: Data | None = None
        self._samples_key: str | None = None
        self._samples: Samples | Datasets | None = None
        self._shared: SharedArrays | None = None  # to be sent with this object, or to be taken by it

    def __getstate__(self) -> dict[str, Any]:
        return {**RememberedData().__dict__, "_shared": self._shared}

    def __call__(self, config: Config) -> Data:
        samples, key = self.samples(config), data_key(config)
        if self._data is None or key != self._key:
            self._key, self._data = key, divided(samples, config)
        return self._data

    def samples(self, config: Config) -> Samples | Datasets:
        """Return all samples. Raise ConfigError if they cannot be loaded."""
        if self._samples is None:
            self._take(self._shared)
        key = samples_key(config)
        if self._samples is None or key != self._samples_key:
            self._data = self._samples = None  # before the others are loaded, which may need their memory
            self._samples_key, self._samples = key, load_samples(config)
        return self._samples

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the arrays of the present data in a file, for this process and those that this object is sent to.

        If the data are small, or there is no way or no room for it, each process loads its own.
        """
        own = self._samples_key, self._samples, self._key, self._data
        held = shared(own) if isinstance(self._samples, Samples) else None
        del own
        self._take(held)
        self._shared = held
        try:
            yield
        finally:
            self._shared = None
            if held is not None:
                held.close()

    def _take(self, held: SharedArrays | None) -> None:
        """Use these data instead of copies of this process's own, if they can be mapped."""
        self._shared = None
        if held is not None and (found := held.load()) is not None:
            self._samples_key, self._samples, self._key, self._data = found
