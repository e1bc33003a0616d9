"""A trained model as one file for other programs: ONNX, or a program of torch.export. It is checked before it counts.

The graph normalises its inputs, and returns what `Predictor.predict` does for numbers, and probabilities of classes.
"""

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sweep.config.schema import Config
from sweep.data import Samples
from sweep.data.encoding import Learnt
from sweep.tracking.folders import RunFolder
from sweep.tracking.stored_run import config_of
from sweep.training.data import LoadingFailed
from sweep.training.tensors import EVAL_BATCH
from sweep.trial.model_files import refuse_changed_data
from sweep.trial.prepare import Data, divided, load_samples
from sweep.trial.stored_model import KEY, load_file
from sweep.utils.errors import ConfigError, one_line

if TYPE_CHECKING:
    from sweep.trial.model_facts import ModelFacts
    from sweep.trial.predictor import Predictor

TOLERANCE = 1e-5  # of probabilities, of numbers in standard deviations of the targets, and of rates above 1 as a share
_NEEDS = ("onnx", "onnxscript")
_INPUT = "inputs"

Run = Callable[[NDArray], NDArray]  # from inputs to outputs of a batch


@dataclass(frozen=True)
class ExportedModel:
    """A file that was written and checked.

    Attributes:
        path: of the file.
        dtype: of the inputs.
        inputs: names of the inputs, or of the channels of images.
        in_shape: of one sample's input.
        output: `prediction` or `probabilities`.
        n_checked: the number of test samples that it was checked on.
        difference: the largest difference to the model, in the units of TOLERANCE.
        checked_by: what ran the file.
    """

    path: Path
    dtype: str
    inputs: tuple[str, ...]
    in_shape: tuple[int, ...]
    output: str
    n_checked: int
    difference: float
    checked_by: str


class GraphModule(nn.Module):
    """A model with the preprocessing of its numeric inputs, and with outputs in the user's own units."""

    _x_mean: Tensor
    _x_std: Tensor
    _y_mean: Tensor
    _y_std: Tensor
    _fill: Tensor  # of each column
    _places: Tensor  # of the model's inputs among the columns and, behind them, whether each is empty

    def __init__(self, predictor: "Predictor") -> None:
        """Make the module of a trained model."""
        super().__init__()
        facts = predictor.facts
        self.module, self._facts, self._task = predictor.module, facts, predictor.task
        shape = (1, -1, *[1] * (len(facts.in_shape or ()) - 1))
        for name in ("mean", "std"):
            if facts.preprocessing is not None:
                values = torch.tensor(facts.preprocessing[name], dtype=torch.float64).reshape(shape)
                self.register_buffer(f"_x_{name}", values, persistent=False)
            of_targets = torch.tensor(getattr(facts, f"y_{name}"), dtype=torch.float64)
            self.register_buffer(f"_y_{name}", of_targets, persistent=False)
        columns = fillable(facts) or []
        self._fills = any(one["fill"] is not None for one in columns)
        fills = [0.0 if one["fill"] is None else one["fill"] for one in columns]
        self.register_buffer("_fill", torch.tensor(fills, dtype=torch.float64), persistent=False)
        places = [
            place for i, one in enumerate(columns) for place in ([i, len(columns) + i] if one["indicator"] else [i])
        ]
        self.register_buffer("_places", torch.tensor(places), persistent=False)

    @property
    def output(self) -> str:
        """What `forward` returns."""
        return "probabilities" if self._task.probabilities(torch.zeros(1, 2, 2)) is not None else "prediction"

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs in their own units to predictions or probabilities."""
        if not self._facts.tokens and self._facts.preprocessing is not None:
            inputs = self._normalised(inputs)
        outputs = self.module(inputs)
        shares = self._task.probabilities(outputs)
        if shares is not None:
            return shares
        return self._task.predicted(self._facts.on_target_scale(outputs), self._y_mean, self._y_std)

    def _normalised(self, inputs: Tensor) -> Tensor:
        inputs = inputs.double()
        if self._fills:
            is_empty = torch.isnan(inputs)
            filled = torch.where(is_empty, self._fill, inputs)
            inputs = torch.cat([filled, is_empty.double()], dim=1).index_select(1, self._places)
        return ((inputs - self._x_mean) / self._x_std).float()


def fillable(facts: "ModelFacts") -> list[Learnt] | None:
    """Return what was learnt of the columns if all are numbers, so that the graph fills empty cells; else None."""
    columns = facts.preprocessing["columns"] if facts.preprocessing is not None else None
    return columns if columns and all(one["kind"] == "number" for one in columns) else None


def write_exported(best: Path, kind: str, path: Path) -> ExportedModel:
    """Export the model in a best.pt, and check it on the test split of its run.

    Args:
        best: the file, in the folder of its run.
        kind: onnx or torch_export.
        path: where the export goes. Nothing may be there.

    Raises:
        ConfigError: the model cannot be loaded or exported, the data are gone or have changed, a package is missing, or
            the exported model computes something else. No file is left then.
        OSError: the file cannot be written.
    """
    if missing := [name for name in _NEEDS if kind == "onnx" and importlib.util.find_spec(name) is None]:
        raise ConfigError("--format", f"onnx needs {' and '.join(missing)}; pip install 'hydra-sweep[export]'")
    predictor = load_file(best)
    facts = predictor.facts
    if not all(hasattr(predictor.task, name) for name in ("predicted", "probabilities")):
        raise ConfigError("task", f"{facts.task} has no methods `predicted` and `probabilities`; see sweep.tasks")
    given, prepared = _test_inputs(RunFolder(best.parent), facts)
    with _refusals(kind), torch.no_grad():
        graph = GraphModule(predictor).eval()
        outputs = torch.cat([predictor.module(part) for part in torch.from_numpy(prepared).split(EVAL_BATCH)])
        wanted = predictor.probabilities(outputs) if graph.output == "probabilities" else predictor.decoded(outputs)
    assert wanted is not None
    with TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        tmp = Path(folder) / path.name
        with _refusals(kind), _silence():
            run, checked_by = _EXPORTS[kind](graph, given, tmp)
            found = np.concatenate([run(given[i : i + EVAL_BATCH]) for i in range(0, len(given), EVAL_BATCH)])
        scale = np.array(facts.y_std).reshape(-1) if graph.output == "prediction" else np.ones(1)
        difference = _difference(found, wanted, scale, facts.log_outputs)
        if not difference <= TOLERANCE:
            problem = f"the exported model differs from the model by {difference:.2g} on the test split"
            raise ConfigError("--format", f"{problem}, more than {TOLERANCE:g}; use the other format")
        os.link(tmp, path)  # which refuses if something has appeared there meanwhile
    return ExportedModel(
        path, str(given.dtype), _names(facts), given.shape[1:], graph.output, len(given), difference, checked_by
    )


def _test_inputs(run: RunFolder, facts: "ModelFacts") -> tuple[NDArray, NDArray]:
    """Return the inputs of the test split as the graph takes them, and as the module does.

    Raises ConfigError if the data cannot be loaded, or have changed since the run.
    """
    config = config_of(run, KEY)
    samples = load_samples(config)
    data = divided(samples, config)
    refuse_changed_data(run, data, "the export cannot be checked")
    if data.divided is None:
        return _loaded_inputs(data, config)
    rows = data.splits.test_rows
    own = samples if fillable(facts) else data.samples
    assert isinstance(own, Samples)
    return np.ascontiguousarray(own.x[rows]), data.splits.test.x


def _loaded_inputs(data: Data, config: Config) -> tuple[NDArray, NDArray]:
    """Return the inputs of the test split of torch datasets, twice: they are not normalised."""
    with data.on_device(config, torch.device("cpu")) as loaded:
        if loaded.test is None or data.content.in_shape is None:
            what = "has no test split" if loaded.test is None else "gives no pairs of inputs and targets"
            raise ConfigError("data", f"{what}; the export cannot be checked")
        try:
            x = torch.cat([x for x, _ in loaded.test.batches()]).numpy()
        except LoadingFailed as error:
            raise ConfigError("data", str(error)) from error
    return x, x


def _names(facts: "ModelFacts") -> tuple[str, ...]:
    if facts.preprocessing is None:
        return ()
    columns = fillable(facts)
    return tuple(facts.preprocessing["inputs"] if columns is None else [one["name"] for one in columns])


def _difference(found: NDArray, wanted: NDArray, scale: NDArray, are_rates: bool = False) -> float:
    """Return the largest difference, in units of `scale`, (n_targets,); NaN if one is NaN or the shapes differ.

    are_rates: True divides by numbers above 1, since a rounding error of a logarithm is a share of the number.
    """
    if found.shape != wanted.shape:
        return float("nan")
    apart = np.abs(found.astype(np.float64) - wanted) / (np.maximum(1, np.abs(wanted)) if are_rates else 1)
    if len(scale) > 1:
        scale = scale.reshape(1, -1, *[1] * (apart.ndim - 2))
    return float((apart / scale).max(initial=0))


def _example(given: NDArray) -> Tensor:
    """Return a batch of two samples or more: torch takes the size 1 for a constant."""
    return torch.from_numpy(np.resize(given, (max(2, min(len(given), 4)), *given.shape[1:])))


def _to_torch(graph: GraphModule, given: NDArray, path: Path) -> tuple[Run, str]:
    program = _program(graph, given)
    with open(path, "wb") as file:
        torch.export.save(program, file)
    with open(path, "rb") as file:
        module = torch.export.load(file).module()

    def run(batch: NDArray) -> NDArray:
        with torch.no_grad():
            return module(torch.from_numpy(batch)).numpy()

    return run, f"torch {torch.__version__}"


def _program(graph: GraphModule, given: NDArray) -> "torch.export.ExportedProgram":
    with torch.no_grad():
        return torch.export.export(
            graph, (_example(given),), dynamic_shapes={_INPUT: {0: torch.export.Dim("batch")}}, strict=False
        )


def _to_onnx(graph: GraphModule, given: NDArray, path: Path) -> tuple[Run, str]:
    import onnx  # pyright: ignore[reportMissingImports]

    program: Any = torch.onnx.export(_program(graph, given), dynamo=True, verbose=False)
    model = program.model_proto
    model.graph.input[0].name, names = _INPUT, {model.graph.input[0].name: _INPUT}
    names[model.graph.output[0].name] = graph.output
    model.graph.output[0].name = graph.output
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    facts = graph._facts
    for key, value in (("inputs", _names(facts)), ("classes", facts.classes), ("targets", facts.targets)):
        model.metadata_props.add(key=f"sweep.{key}", value=json.dumps(list(value)))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime  # pyright: ignore[reportMissingImports]

        session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda batch: session.run(None, {_INPUT: batch})[0], f"onnxruntime {onnxruntime.__version__}"
    from onnx.reference import ReferenceEvaluator  # pyright: ignore[reportMissingImports]

    evaluator: Any = ReferenceEvaluator(str(path))
    return lambda batch: evaluator.run(None, {_INPUT: batch})[0], f"onnx {onnx.__version__}"


_EXPORTS: dict[str, Callable[[GraphModule, NDArray, Path], tuple[Run, str]]] = {
    "onnx": _to_onnx,
    "torch_export": _to_torch,
}


@contextmanager
def _refusals(kind: str) -> Iterator[None]:
    """Turn any error of the export into a ConfigError of one line. An OSError passes."""
    try:
        yield
    except (ConfigError, OSError):
        raise
    except Exception as error:  # torch and onnx raise all kinds of errors
        reason = one_line(error.__cause__ if kind == "onnx" and error.__cause__ else error)
        raise ConfigError("--format", f"{kind} cannot express this model ({reason})") from error


@contextmanager
def _silence() -> Iterator[None]:
    """Hide what torch and onnx print while they work: their errors say what is wrong."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
