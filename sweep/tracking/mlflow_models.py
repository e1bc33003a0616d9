"""Models in an MLflow tracking store: those of runs, and the registry."""

import json
import logging
import platform
import shutil
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import AnyType
from sqlalchemy.exc import SQLAlchemyError

from sweep.tracking.chunks import MODEL
from sweep.tracking.folders import RunFolder
from sweep.tracking.mlflow_artifacts import ArtifactPlaces
from sweep.tracking.store import Store
from sweep.utils.checked_file import load_checked
from sweep.utils.errors import ConfigError, one_line
from sweep.utils.files import to_yaml
from sweep.utils.passwords import without_password

with warnings.catch_warnings():  # of MLflow's own classes
    warnings.simplefilter("ignore")
    import mlflow.pyfunc

_LOADER = "sweep.trial.stored_model"  # its `_load_pyfunc` loads the model
_PACKAGES = ("hydra-sweep", "torch", "mlflow")
_EXISTS = "RESOURCE_ALREADY_EXISTS"


def send_model(
    client: MlflowClient, places: ArtifactPlaces, folder: RunFolder, run_id: str, register: str | None
) -> None:
    """Log a run's model as a model of MLflow's, and add it to the registry. Both may be repeated.

    A model that MLflow cannot write only logs a warning, since the run has its best.pt too.

    Args:
        client: of the store.
        places: says where the store may keep artifacts.
        folder: the run's folder, with best.pt and model.yaml.
        run_id: the MLflow run id.
        register: the name of the registered model; None registers none.

    Raises:
        MlflowException: the store fails, or would put the model outside the outputs.
    """
    if any(path.is_symlink() or not path.is_file() for path in (folder.best, folder.signature)):
        return  # a link could lead to any file of the user
    uri = str(client.get_run(run_id).info.artifact_uri)
    if not places.may_hold(uri, f"{MODEL}/MLmodel"):
        raise MlflowException(f"the store would put the model into {uri}, outside the outputs")
    with tempfile.TemporaryDirectory() as place:
        made = Path(place) / MODEL
        try:
            write_model(folder, made)
        except Exception:  # MLflow raises all kinds of errors
            logging.getLogger(__name__).exception("cannot write the model of %s", folder.path)
            return
        client.log_artifacts(run_id, str(made), MODEL)
    if register is not None:
        _register(client, register, run_id, f"{uri}/{MODEL}")


def write_model(folder: RunFolder, place: Path) -> None:
    """Write a run's model as a folder of MLflow's, with a signature and an input example. This does not load torch.

    `mlflow.pyfunc.save_model` would write the same, but reads the file lists of all installed packages first, to
    compare the requirements with them. That takes 0.7 s.

    Args:
        folder: the run's folder, with best.pt and model.yaml.
        place: the new folder.
    """
    described = load_checked(folder.signature, "output_dir", "put back a copy of it")
    inputs, example = described["inputs"], described["example"]
    (place / "data").mkdir(parents=True)
    shutil.copyfile(folder.best, place / "data" / folder.best.name)
    model = Model(signature=ModelSignature(_input_schema(inputs), Schema([_tensor(described["outputs"])])))
    model.saved_input_example_info = _write_example(inputs, example, place)
    required = [f"{package}=={version(package).partition('+')[0]}" for package in _PACKAGES]
    (place / "requirements.txt").write_text("\n".join(required) + "\n")
    python = platform.python_version()
    environments = {
        "python_env.yaml": {"python": python, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]},
        "conda.yaml": {
            "name": "mlflow-env",
            "channels": ["conda-forge"],
            "dependencies": [f"python={python}", "pip", {"pip": required}],
        },
    }
    for name, content in environments.items():
        (place / name).write_text(to_yaml(content))
    data, python_env, conda_env = f"data/{folder.best.name}", *environments
    mlflow.pyfunc.add_to_model(model, _LOADER, data=data, python_env=python_env, conda_env=conda_env)
    model.save(str(place / "MLmodel"))


def _input_schema(inputs: Any) -> Schema:
    if isinstance(inputs, dict):
        return Schema([_tensor(inputs)])
    kinds = {"double": DataType.double, "any": AnyType()}
    return Schema([ColSpec(kinds[one["type"]], one["name"], one["required"]) for one in inputs])


def _tensor(described: dict[str, Any]) -> TensorSpec:
    return TensorSpec(np.dtype(described["dtype"]), tuple(described["shape"]))


def _write_example(inputs: Any, example: Any, place: Path) -> dict[str, str]:
    """Write the input example, and what a server takes for it. Return the entry for the file MLmodel."""
    if isinstance(inputs, dict):
        shown, served = example, {"inputs": example}
        info = {"type": "ndarray"}
    else:
        names = [one["name"] for one in inputs]
        rows = [list(row) for row in zip(*(example[name] for name in names), strict=True)]
        shown = {"columns": names, "data": rows}
        served = {"dataframe_split": shown}
        info = {"type": "dataframe", "pandas_orient": "split"}
    files = {"artifact_path": "input_example.json", "serving_input_path": "serving_input_example.json"}
    for name, content in zip(files.values(), (shown, served), strict=True):
        (place / name).write_text(json.dumps(content))
    return info | files


def _register(client: MlflowClient, name: str, run_id: str, source: str) -> None:
    """Add a version to a registered model, which is created if it is missing, unless the run has one already."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != _EXISTS:
            raise
    known: list[ModelVersion] = client.search_model_versions(f"run_id = '{run_id}'")
    if not any(one.name == name for one in known):
        client.create_model_version(name, source, run_id)


def download_model(store: Store, run_id: str, place: Path) -> Path:
    """Download a run's best.pt.

    Args:
        store: the tracking store.
        run_id: the id of the run.
        place: the folder to download to.

    Returns:
        The path of the file.

    Raises:
        ConfigError: the store fails, has no such run, or would take the file from outside the outputs.
    """
    assert store.uri is not None
    name = RunFolder(place).best.name
    where = without_password(store.uri)
    try:
        client = MlflowClient(store.uri)
        uri = str(client.get_run(run_id).info.artifact_uri)
        if not ArtifactPlaces(client, store).may_hold(uri, name):
            raise ConfigError("run", f"{where} keeps the files of {run_id} in {uri}, outside the outputs")
        if name not in {file.path for file in client.list_artifacts(run_id)}:
            raise ConfigError("run", f"{run_id} in {where} has no {name}; load it from the folder of its run or study")
        return Path(client.download_artifacts(run_id, name, str(place)))
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise ConfigError("run", f"{run_id} cannot be read from {where}: {one_line(error)}") from error
