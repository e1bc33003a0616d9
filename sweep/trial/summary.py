"""The summary that a command prints at the end of a run."""

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from sweep.config.overrides import program
from sweep.tracking.folders import RunFolder
from sweep.utils.console import Console
from sweep.utils.passwords import without_password

if TYPE_CHECKING:
    from sweep.trial.outcome import Outcome

_MEANINGS = {
    "test/noise_ratio": "test MSE / sigma^2",
    "test/excess": "noiseless MSE / sigma^2",
}


def print_summary(outcome: "Outcome") -> None:
    """Print the best validation value, the test metrics, the time, the folder, and how to see the run in MLflow."""
    table = Table(title=outcome.name, box=box.SIMPLE_HEAD, show_header=False, title_justify="left")
    when = f"(epoch {outcome.best_epoch} of {outcome.n_epochs})"
    if outcome.is_best:
        table.add_row(f"best {outcome.monitor}", f"{outcome.value:.6g} {when}")
    elif outcome.n_epochs:
        table.add_row(outcome.monitor, f"{outcome.value:.6g} {when}")
    for key, value in outcome.metrics.items():
        if not key.startswith("val/") or key not in outcome.history:
            table.add_row(key, f"{value:.6g}", _MEANINGS.get(key, ""))
    table.add_row("time", f"{outcome.train_s:.1f} s of training")
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(f"Run folder:    {outcome.folder}")
    if outcome.uploaded and outcome.tracking_uri is not None:
        console.print(where_to_look("runs", outcome.tracking_uri))
    elif outcome.uploaded:
        drawn = "; the run folder has the curves in curves.png" if RunFolder(outcome.folder).curves.exists() else ""
        console.print(f"Tracking is off{drawn}.")


def where_to_look(what: str, uri: str) -> str:
    """Return a line that says how to compare `what` ("runs" or "trials") in MLflow. A password in `uri` is left out."""
    uri = without_password(uri)
    if uri.startswith(("http://", "https://")):
        return f"Compare {what} at {uri}"
    return f"Compare {what}:  {program('mlflow', 'ui', '--backend-store-uri', uri)}"
