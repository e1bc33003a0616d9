"""The curve of a metric."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Curve(NamedTuple):
    """One metric of a run by step or epoch. `steps` has shape (n,) and ascends; `values` has shape (n,)."""

    steps: "NDArray[np.int64]"
    values: "NDArray[np.float64]"

    def tolist(self) -> tuple[list[int], list[float]]:
        return self.steps.tolist(), self.values.tolist()
