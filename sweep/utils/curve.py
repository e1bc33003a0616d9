"""A metric of a run, step by step."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Curve(NamedTuple):
    """One metric of a trial. steps: (n,) int64, ascending; values: (n,) float64."""

    steps: "NDArray[np.int64]"
    values: "NDArray[np.float64]"

    def tolist(self) -> tuple[list[int], list[float]]:
        return self.steps.tolist(), self.values.tolist()
