"""The files of a learning-rate range test: its losses and its suggestion."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.utils.files import to_yaml, write_atomic

if TYPE_CHECKING:
    from sweep.training.range_test import Ramp


class RangeFolder:
    """The paths of everything in the folder of one range test."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.losses = self.path / "losses.csv"
        self.result = self.path / "lr_range.yaml"
        self.plot = self.path / "lr_range.png"
        self.log = self.path / "run.log"  # Hydra writes it

    @property
    def written(self) -> list[Path]:
        """Every file that the test writes."""
        return [self.losses, self.result, self.plot, self.log]


def write_losses(folder: RangeFolder, first_seed: int, ramps: "Sequence[Ramp]") -> None:
    """Write losses.csv atomically, with one row for each update of each seed. `first_seed` is that of the first ramp.

    Creates the folder if needed.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["seed", "update", "lr", "loss", "averaged_loss"])
    for seed, ramp in enumerate(ramps, first_seed):
        for update, (lr, loss, mean) in enumerate(zip(ramp.lrs, ramp.losses, ramp.averages, strict=True), 1):
            writer.writerow([seed, update, f"{lr:.6g}", f"{loss:.6g}", f"{mean:.6g}"])
    folder.path.mkdir(parents=True, exist_ok=True)
    write_atomic(folder.losses, text.getvalue())


def write_result(folder: RangeFolder, result: Mapping[str, Any]) -> None:
    """Write lr_range.yaml atomically. The folder must exist."""
    write_atomic(folder.result, to_yaml(dict(result)))
