"""Export a trained model as one file for other programs."""

from pathlib import Path
from typing import TYPE_CHECKING

from sweep.trial.stored_model import model_file
from sweep.utils.errors import ConfigError, one_line, one_of
from sweep.utils.paths import absolute

if TYPE_CHECKING:
    from sweep.trial.exported_model import ExportedModel

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}  # by format


def export_model(
    run: str | Path, path: str | Path | None = None, *, format: str = "onnx", output_dir: str | Path = "outputs"
) -> "ExportedModel":
    """Write a trained model as one file for other programs, like `python -m sweep.export`, and check it.

    Args:
        run: the folder of a run, or the name of a study for its best trial, as for `sweep.load_model`.
        path: where the model goes; by default model.onnx or model.pt2 in the folder of the run.
        format: onnx or torch_export.
        output_dir: the folder that results go to. It is used only for the name of a study.

    Returns:
        What was written: its path, what it takes and returns, and how it was checked.

    Raises:
        ConfigError: there is no such run, its model cannot be exported or is not the same on the test split, or the
            file exists or cannot be written. No file is left then.
    """
    one_of("--format", format, [*SUFFIXES])
    with model_file(run, output_dir) as best:
        place = absolute(path or best.with_name(f"model{SUFFIXES[format]}"))
        if place.exists():
            raise ConfigError("-o", f"'{place}' exists; remove it, or name another file")
        from sweep.trial.exported_model import write_exported

        try:
            return write_exported(best, format, place)
        except OSError as error:
            raise ConfigError("-o", f"cannot write '{place}' ({one_line(error)}); name another file") from error
