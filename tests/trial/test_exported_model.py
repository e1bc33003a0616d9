"""sweep/trial/exported_model.py and sweep/export.py: files for other programs, against the model that was trained."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from torch import Tensor, nn
from trained import allow, held_out, own, passengers, table, text, trained

import sweep.export
from sweep import load_model
from sweep.tracking.run_recorder import stored_text
from sweep.trial import exported_model
from sweep.trial.builtin import BuiltInTraining
from sweep.utils.checked_file import write_checked
from sweep.utils.files import to_yaml

pytestmark = pytest.mark.slow

FORMATS = {"onnx": "model.onnx", "torch_export": "model.pt2"}


def run(folder: Path, *overrides: str) -> BuiltInTraining:
    """A run's folder, as far as an export needs it."""
    training, _ = trained(folder, *overrides)
    write_checked(folder / "config.yaml", stored_text(training.config))
    return training


def computed(path: Path, x: NDArray) -> NDArray:
    """What another program computes with the file."""
    if path.suffix == ".pt2":
        with torch.no_grad():
            return torch.export.load(path).module()(torch.from_numpy(x)).numpy()
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = [one.name for one in session.get_inputs()]
    return session.run(None, {name: x})[0]


def exported(folder: Path, kind: str, *more: str) -> Path:
    assert sweep.export.main([str(folder), "--format", kind, *more]) == 0
    return folder / FORMATS[kind]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert sweep.export.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


@pytest.mark.parametrize("kind", FORMATS)
def test_numbers_are_in_the_targets_own_units(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, _ = held_out(run(tmp_path, "data=diabetes"))
    path = exported(tmp_path, kind)
    assert_allclose(computed(path, x), load_model(tmp_path).predict(x), rtol=1e-5)
    assert computed(path, x[:1]).shape == (1,)
    out = capsys.readouterr().out
    assert f"Wrote {path}\n" in out
    assert "takes    inputs: float64 (N, 10), in their own units: age, sex, bmi" in out
    assert "equal to the model on the 66 test samples, largest difference" in out
    before = path.read_bytes()
    assert "exists; remove it, or name another file" in refused(capsys, str(tmp_path), "--format", kind)
    assert path.read_bytes() == before
    nowhere = tmp_path / "none" / path.name
    message = refused(capsys, str(tmp_path), "--format", kind, "-o", str(nowhere))
    assert message.startswith(f"error: -o: cannot write '{nowhere}' (")
    with pytest.raises(sweep.ConfigError, match="exists; remove it"):
        sweep.export_model(tmp_path, format=kind)
    with pytest.raises(sweep.ConfigError, match="choose one of onnx, torch_export"):
        sweep.export_model(tmp_path, format="pickle")


@pytest.mark.parametrize("kind", FORMATS)
def test_with_the_poisson_loss_numbers_are_rates(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch)
    poisson = (*own("counts"), "task/loss=poisson", "split.normalize=false", "trainer.epochs=30")
    x, y = held_out(run(tmp_path, *poisson))
    found = computed(exported(tmp_path, kind), x)
    assert_allclose(found, load_model(tmp_path).predict(x), rtol=1e-5)
    assert found.mean() == pytest.approx(y.mean(), rel=0.3)


@pytest.mark.parametrize("kind", FORMATS)
def test_images_give_probabilities(kind: str, tmp_path: Path) -> None:
    x, _ = held_out(run(tmp_path, "data=digits", "model=convnet", "split.max_samples=200"))
    found = computed(exported(tmp_path, kind), x)
    assert_allclose(found, load_model(tmp_path).predict_proba(x), atol=1e-5)


def test_tokens_give_probabilities(tmp_path: Path) -> None:
    x, _ = held_out(run(tmp_path, *text(tmp_path)))
    found = computed(exported(tmp_path, "torch_export"), x)
    assert_allclose(found, load_model(tmp_path).predict_proba(x), atol=1e-5)


def test_empty_cells_of_numbers_are_filled_inside(tmp_path: Path) -> None:
    frame = passengers()[["age", "fare"]].assign(y=np.arange(120) % 7)
    frame.to_csv(tmp_path / "numbers.csv", index=False)
    run(tmp_path, "data=table", f"data.path={tmp_path / 'numbers.csv'}", "data.target=y", "data.missing=indicator")
    path = exported(tmp_path, "torch_export")
    x = frame[["age", "fare"]].to_numpy(np.float64, copy=True)
    assert np.isnan(x).any()
    assert_allclose(computed(path, x), load_model(tmp_path).predict(frame), rtol=1e-5)


def test_categories_come_as_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, *table(tmp_path))
    path = exported(tmp_path, "torch_export", "-o", str(tmp_path / "model.pt2"))
    assert "age is empty, city" in capsys.readouterr().out
    model = load_model(tmp_path)
    facts = model.facts.preprocessing
    assert facts is not None
    inputs = model.inputs(passengers()).astype(np.float64) * facts["std"] + facts["mean"]
    assert_allclose(computed(path, inputs), model.predict_proba(passengers()), atol=1e-5)


def test_an_onnx_file_names_what_it_takes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    run(tmp_path, *table(tmp_path))
    model = onnx.load(exported(tmp_path, "onnx"))
    said = {entry.key: json.loads(entry.value) for entry in model.metadata_props if entry.key.startswith("sweep.")}
    assert said["sweep.classes"] == ["lost", "saved"]
    facts = load_model(tmp_path).facts.preprocessing
    assert facts is not None
    assert said["sweep.inputs"] == facts["inputs"]
    assert [one.name for one in model.graph.input] == ["inputs"]
    assert [one.name for one in model.graph.output] == ["probabilities"]


class Branching(nn.Module):
    """Torch cannot export what depends on the values of its inputs."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


def test_what_cannot_be_exported_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", f"{__name__}.*")
    arguments = ("~model.widths", "~model.activation", "~model.dropout")
    run(tmp_path, "data=diabetes", f"model._target_={__name__}.Branching", *arguments)
    for kind in FORMATS:
        assert f"--format: {kind} cannot express this model (" in refused(capsys, str(tmp_path), "--format", kind)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".model", "model.o", "model.p"))]


def test_a_file_that_computes_something_else_does_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, "data=diabetes")
    make: Callable[..., Any] = exported_model._to_torch

    def wrong(graph: Any, given: NDArray, path: Path) -> tuple[Callable[[NDArray], NDArray], str]:
        computes, name = make(graph, given, path)
        return lambda x: computes(x) + 0.01, name

    monkeypatch.setitem(exported_model._EXPORTS, "torch_export", wrong)
    line = refused(capsys, str(tmp_path), "--format", "torch_export")
    assert "the exported model differs from the model by" in line
    assert not (tmp_path / "model.pt2").exists()


def test_what_an_export_lacks_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no folder" in refused(capsys, str(tmp_path / "other"))
    run(tmp_path, *table(tmp_path))
    (tmp_path / "passengers.csv").unlink()
    assert "data.path: no file" in refused(capsys, str(tmp_path), "--format", "torch_export")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    line = refused(capsys, str(tmp_path), "--format", "onnx")
    assert line == "error: --format: onnx needs onnx; pip install 'hydra-sweep[export]'"
    (tmp_path / "config.yaml").unlink()
    assert "has no config.yaml" in refused(capsys, str(tmp_path), "--format", "torch_export")


def test_the_best_trial_of_a_study_is_exported_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "outputs" / "studies" / "s"
    x, _ = held_out(run(study / "trials" / "2" / "seed-0", "data=diabetes", "split.max_samples=200"))
    write_checked(study / "best.yaml", to_yaml({"trial": 2, "values": [0.5], "overrides": []}))
    monkeypatch.chdir(tmp_path)
    path = exported(Path("s"), "torch_export", "-o", "best.pt2")
    assert not path.exists()
    assert_allclose(computed(tmp_path / "best.pt2", x), load_model("s").predict(x), rtol=1e-5)
    assert sweep.export.main(["s", "--format", "torch_export", "--output-dir", str(tmp_path / "outputs")]) == 0
    assert f"Wrote {study}/trials/2/seed-0/model.pt2\n" in capsys.readouterr().out


def test_a_model_of_torch_datasets_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", "torch_datasets.*")
    run(tmp_path, "data._target_=torch_datasets.curve", "data.noise=0", "~data.domain", "~data.seed")
    x = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    found = computed(exported(tmp_path, "torch_export"), x)
    assert_allclose(found, load_model(tmp_path).predict(x), rtol=1e-5)
