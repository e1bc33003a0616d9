"""The default data: a sine with Gaussian noise."""

import math
from collections.abc import Sequence

import numpy as np

from sweep.data.samples import Samples
from sweep.utils.errors import ConfigError


def noisy_sine(
    n: int = 4000, noise: float = 0.1, domain: Sequence[float] = (-math.pi, math.pi), seed: int = 0
) -> Samples:
    """Make `n` pairs (x, sin(x) + e), with their noiseless targets.

    Raises ConfigError if a value below cannot be used.

    Args:
        n: how many pairs; at least 1.
        noise: standard deviation of e, which is normal; above 0.
        domain: [low, high] in radians; x is uniform in between.
        seed: of the random numbers; at least 0.
    """
    if n < 1:
        raise ConfigError("data.n", f"must be >= 1, got {n}")
    if not (math.isfinite(noise) and noise > 0):
        raise ConfigError("data.noise", f"must be a finite number > 0, got {noise}")
    if len(domain) != 2 or not 0 < domain[1] - domain[0] < math.inf:
        raise ConfigError("data.domain", f"must be [low, high] with low < high, both finite, got {list(domain)}")
    if seed < 0:
        raise ConfigError("data.seed", f"must be >= 0, got {seed}")
    rng = np.random.default_rng(seed)
    x = rng.uniform(domain[0], domain[1], size=n)
    clean = np.sin(x)
    y = clean + rng.normal(scale=noise, size=n)
    return Samples(name="noisy_sine", task="regression", x=x[:, None], y=y, clean=clean, noise=noise, features=("x",))
