"""What each worker of a study may use of its machine: `hydra.sweeper.resources`."""

from dataclasses import dataclass
from typing import Any

from sweep.utils.errors import ConfigError

KEY = "hydra.sweeper.resources"
_NAMES = ("cpus", "gpus")


@dataclass(frozen=True)
class Resources:
    """What a worker may use, whatever launches it. None leaves a number to the launcher and the machine.

    Attributes:
        cpus: the number of cores, which is that of its threads.
        gpus: the number of GPUs; a fraction such as 0.25 shares one with other workers.
    """

    cpus: int | None = None
    gpus: float | None = None

    @classmethod
    def of(cls, node: Any) -> "Resources":
        """Return the resources in a config node, a mapping or None. Raise ConfigError for what cannot be used."""
        if isinstance(node, cls):
            return node
        if node is None:
            return cls()
        if not isinstance(node, dict):
            raise ConfigError(KEY, f"must be such as {{cpus: 4, gpus: 1}}, got {node!r}")
        for name in node.keys() - set(_NAMES):
            raise ConfigError(f"{KEY}.{name}", f"is unknown; choose {' or '.join(_NAMES)}")
        cpus, gpus = node.get("cpus"), node.get("gpus")
        if cpus is not None and (type(cpus) is not int or cpus < 1):
            raise ConfigError(f"{KEY}.cpus", f"must be a whole number >= 1, got {cpus!r}")
        if gpus is not None and (type(gpus) not in (int, float) or not gpus >= 0 or (gpus > 1 and gpus % 1 != 0)):
            raise ConfigError(f"{KEY}.gpus", f"must be a whole number, or a fraction between 0 and 1, got {gpus!r}")
        return cls(cpus, gpus)

    @property
    def n_on_a_gpu(self) -> int:
        """How many workers share a GPU; 1 unless `gpus` is a fraction."""
        return int(1 / self.gpus + 1e-9) if self.gpus and self.gpus < 1 else 1

    def n_gpus(self, n_workers: int) -> int:
        """Return how many GPUs so many workers need on one machine."""
        if not self.gpus:
            return 0
        return -(-n_workers // self.n_on_a_gpu) * max(1, int(self.gpus))
