"""Draw the curves of a run from its journal."""

from pathlib import Path

from sweep.config.metrics import sign_of
from sweep.config.task_node import AUTO_TASK, direction_of
from sweep.figures.run_curves import draw_run_curves
from sweep.tracking.folders import RunFolder
from sweep.tracking.journal import curves, first


def ensure_curves(folder: RunFolder) -> None:
    """Draw the run's curves unless the plot is newer than the journal."""
    if not folder.curves.exists() or folder.curves.stat().st_mtime_ns < folder.journal.stat().st_mtime_ns:
        draw_curves(folder.journal, folder.curves)


def draw_curves(journal: Path, plot: Path) -> None:
    """Write a PNG with the losses by epoch above the learning rate by step. The file is replaced atomically."""
    start = first(journal, "start") or {}
    monitor = start.get("params", {}).get("trainer.monitor", "val/loss")
    direction = start.get("direction") or direction_of(monitor, AUTO_TASK)  # earlier versions recorded none
    draw_run_curves(curves(journal), monitor, sign_of(direction), start.get("name", ""), plot)
