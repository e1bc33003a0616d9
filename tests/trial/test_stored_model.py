"""sweep/trial/stored_model.py and predictor.py: a trained model takes data in their own units, and is found by name."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import trained as models
from numpy.testing import assert_allclose, assert_array_equal
from refusals import refusal
from trained import allow, held_out, own, passengers, table, text, trained

from sweep import load_model
from sweep.training import checkpoint
from sweep.trial.predictor import Predictor
from sweep.trial.prepare import load_data
from sweep.utils.errors import Damaged
from sweep.utils.files import to_yaml

RNG = np.random.default_rng(0)
NO_ARGUMENTS = ("~model.widths", "~model.activation", "~model.dropout")


# What a predictor returns, of test samples in their own units, against the metrics that training measured


def test_numbers_come_in_the_targets_own_units(tmp_path: Path) -> None:
    training, test = trained(tmp_path, "data=diabetes")
    x, y = held_out(training)
    model = load_model(tmp_path)
    found = model.predict(x)
    assert found.shape == (len(x),)
    assert np.square(found - y[:, 0]).mean() == pytest.approx(test["test/mse"], rel=1e-5)
    assert np.abs(found - y[:, 0]).mean() > 10, "the case needs a scale of its own"
    assert refusal(lambda: model.predict_proba(x)).key == "predict_proba"


def test_several_targets_have_a_column_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch)
    training, test = trained(tmp_path, *own("pair"))
    x, y = held_out(training)
    found = load_model(tmp_path).predict(x)
    assert found.shape == y.shape == (14, 2)
    assert np.square(found - y).mean() == pytest.approx(test["test/mse"], rel=1e-5)


def test_with_the_poisson_loss_predictions_and_metrics_are_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch)
    poisson = (*own("counts"), "task/loss=poisson", "task/metrics=[mae,mape]", "split.normalize=false")
    training, test = trained(tmp_path, *poisson, "trainer.epochs=40")
    x, y = held_out(training)
    model = load_model(tmp_path)
    found = model.predict(x)
    with torch.no_grad():
        outputs = model.module(torch.from_numpy(model.inputs(x))).double().numpy()[:, 0]
    assert_allclose(found, np.exp(outputs), rtol=1e-6)
    for name, value in {
        "mse": np.square(found - y[:, 0]).mean(),
        "mae": np.abs(found - y[:, 0]).mean(),
        "r2": 1 - np.square(found - y[:, 0]).mean() / y.var(),
    }.items():
        assert test[f"test/{name}"] == pytest.approx(value, rel=1e-4)
    assert test["test/r2"] > 0.5, "the case needs a model that has learnt the rates"
    assert_allclose(pd.read_parquet(tmp_path / "predictions.parquet").prediction, found, rtol=1e-6)


def test_classes_come_by_their_names(tmp_path: Path) -> None:
    training, test = trained(tmp_path, *table(tmp_path))
    frame = passengers().iloc[load_data(training.config).splits.test_rows]
    model = load_model(tmp_path)
    assert_array_equal(model.classes, ["lost", "saved"])
    assert model.features == ("age", "city", "fare", "day")
    shares = model.predict_proba(frame)
    found = model.predict(frame.drop(columns=["fate", "id"])[["fare", "day", "city", "age"]].assign(extra="ignored"))
    assert_array_equal(found, model.classes[shares.argmax(axis=1)])
    assert (found == frame.fate).mean() == pytest.approx(test["test/accuracy"])
    assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    assert set(found) == {"lost", "saved"}, "the case needs both"


def test_images_and_classes_that_are_numbers(tmp_path: Path) -> None:
    training, test = trained(tmp_path, "data=digits", "model=convnet", "split.max_samples=400")
    x, y = held_out(training)
    model = load_model(tmp_path)
    found = model.predict(x)
    assert found.dtype == np.int64
    assert (found == y).mean() == pytest.approx(test["test/accuracy"])
    assert model.predict_proba(x).shape == (len(x), 10)


def test_two_classes_of_one_output(tmp_path: Path) -> None:
    training, test = trained(tmp_path, "data=breast_cancer", "task=binary")
    x, y = held_out(training)
    model = load_model(tmp_path)
    shares = model.predict_proba(x)
    assert_array_equal(model.classes, ["malignant", "benign"])
    assert_array_equal(model.predict(x), model.classes[(shares[:, 1] > 0.5).astype(int)])
    assert (model.predict(x) == model.classes[y]).mean() == pytest.approx(test["test/accuracy"])
    with torch.no_grad():
        logits = model.module(torch.from_numpy(model.inputs(x)))[:, 0]
    assert_allclose(shares, np.stack([(-logits).sigmoid(), logits.sigmoid()], axis=1), rtol=1e-6)


def test_labels_are_0_and_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch)
    training, test = trained(tmp_path, *own("labels"))
    x, y = held_out(training)
    model = load_model(tmp_path)
    found = model.predict(x)
    assert_array_equal(found, model.predict_proba(x) > 0.5)
    assert found.dtype == np.int64
    assert (found == y).mean() == pytest.approx(test["test/accuracy"])


def test_quantiles_rise_in_the_targets_own_units(tmp_path: Path) -> None:
    training, test = trained(tmp_path, "data=diabetes", "task=quantile", "trainer.epochs=10")
    x, y = held_out(training)
    found = load_model(tmp_path).predict(x)
    assert found.shape == (len(x), 3)
    shares = (y <= found).mean(axis=0)
    assert np.abs(shares - [0.1, 0.5, 0.9]).mean() == pytest.approx(test["test/coverage"], abs=1e-6)
    assert (found[:, 0] < found[:, 2]).mean() > 0.9


def test_each_pixel_has_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch)
    training, test = trained(tmp_path, *own("pixels"), f"model._target_={models.__name__}.Pixelwise", *NO_ARGUMENTS)
    x, y = held_out(training)
    model = load_model(tmp_path)
    assert (model.predict(x) == np.array(["land", "sea"])[y]).mean() == pytest.approx(test["test/accuracy"])
    assert model.predict_proba(x).shape == (len(x), 2, 4, 5)


def test_tokens_follow_tokens(tmp_path: Path) -> None:
    training, test = trained(tmp_path, *text(tmp_path), "trainer.epochs=3")
    x, y = held_out(training)
    model = load_model(tmp_path)
    assert (model.predict(x) == y).mean() == pytest.approx(test["test/accuracy"])
    assert model.predict_proba(x[:, :5]).shape == (len(x), 5, 256)  # any length up to that of training
    assert refusal(lambda: model.predict(x + 250)).problem.endswith("but the model knows those from 0 to 255")
    assert "whole numbers" in refusal(lambda: model.predict(x / 2)).problem


def test_the_weights_are_those_of_the_average(tmp_path: Path) -> None:
    trained(tmp_path, "data=diabetes", "trainer.ema=0.9", "trainer.epochs=1")
    average = checkpoint.load(tmp_path / "checkpoint.pt")["average"]
    for name, weight in load_model(tmp_path).module.state_dict().items():
        assert torch.equal(weight, average[f"module.{name}"])


def test_the_precision_is_that_of_training(tmp_path: Path) -> None:
    training, test = trained(tmp_path, "data=diabetes", "trainer.precision=bf16")
    x, y = held_out(training)
    assert np.square(load_model(tmp_path).predict(x) - y[:, 0]).mean() == pytest.approx(test["test/mse"], rel=1e-5)


# Data that it takes and refuses


@pytest.fixture(scope="module")
def of_numbers(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("numbers")
    trained(folder, "data=diabetes")
    return load_model(folder)


@pytest.fixture(scope="module")
def of_a_table(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("table")
    trained(folder, *table(folder))
    return load_model(folder)


def test_a_table_goes_by_names_and_an_array_by_position(of_numbers: Predictor) -> None:
    x = RNG.normal(100, 20, size=(5, 10))
    frame = pd.DataFrame(x, columns=of_numbers.features)
    assert_array_equal(of_numbers.predict(frame[frame.columns[::-1]]), of_numbers.predict(x))
    assert_array_equal(of_numbers.predict(x.tolist()), of_numbers.predict(x))
    assert of_numbers.predict(x[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (np.ones((3, 9)), "must have a row for each sample and 10 columns, got shape (3, 9)"),
        (np.ones(10), "must have the shape (N, 10), got (10,)"),
        (np.full((3, 10), np.nan), "holds a value that is not finite, in row 0, column 0"),
        (np.full((3, 10), "a"), "must hold numbers"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(of_numbers: Predictor, data: np.ndarray, says: str) -> None:
    error = refusal(lambda: of_numbers.predict(data))
    assert (error.key, error.problem[: len(says)]) == ("data", says)


def test_a_table_that_does_not_fit_is_refused(of_a_table: Predictor) -> None:
    frame = passengers(10)
    assert str(refusal(lambda: of_a_table.predict(frame.drop(columns="city")))) == "city: the data have no such column"
    assert "'old' in row 0 is no finite number" in str(refusal(lambda: of_a_table.predict(frame.assign(age="old"))))
    assert "give a DataFrame" in str(refusal(lambda: of_a_table.predict(frame.to_numpy())))


def test_an_unknown_category_counts_as_none_of_those_known(
    of_a_table: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    of_a_table.inputs(passengers(10))
    assert caplog.messages == []
    frame = passengers(10).assign(city=["Rome", *["Atlantis"] * 9])
    inputs = of_a_table.inputs(frame)[1:]
    (line,) = caplog.messages
    assert line.startswith("warning: city: 9 of 10 cells are unknown to the model, such as 'Atlantis' in row 1; they")
    facts = of_a_table.facts.preprocessing
    assert facts is not None
    is_city = [name.startswith("city") for name in facts["inputs"]]
    assert sum(is_city) == 1, "three cities are more than max_one_hot"
    mean, std = (np.array(facts[name])[is_city] for name in ("mean", "std"))
    assert_allclose(inputs[:, is_city] * std + mean, -1, rtol=1e-6)


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    trained(tmp_path, "data=diabetes")
    before = torch.get_rng_state()
    load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


# Where it is found, and files that cannot be used


def copy_of(state: dict, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, {name: value for name, value in state.items() if name != "format"})
    return path


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A study whose best trial is 1, one with seeds, and a run, each with a model of another bias; see `bias_of`."""
    trained(tmp_path / "made", "data=diabetes", "model=linear")
    state = checkpoint.load(tmp_path / "made" / "best.pt")
    folders = ("studies/plain/trials/0", "studies/plain/trials/1", "studies/seeds/trials/4/seed-0", "runs/one")
    for i, folder in enumerate(folders):
        weights = {**state["model"], "layer.bias": torch.full_like(state["model"]["layer.bias"], i)}
        copy_of({**state, "model": weights}, tmp_path / "outputs" / folder / "best.pt")
    for name, number in (("plain", 1), ("seeds", 4)):
        best = {"trial": number, "values": [0.5], "overrides": []}
        (tmp_path / "outputs" / "studies" / name / "best.yaml").write_text(to_yaml(best))
    ids = {"store": {"run_id": "0" * 31 + "1", "offset": 5, "attempted": True}}
    (tmp_path / "outputs" / "runs" / "one" / "mlflow.json").write_text(json.dumps(ids))
    return tmp_path / "outputs"


def test_a_model_is_found_by_study_by_folder_and_by_id(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bias_of(run: str | Path) -> float:
        return load_model(run, output_dir=outputs).module.state_dict()["layer.bias"].item()

    assert bias_of("plain") == 1
    assert bias_of(outputs / "studies" / "plain") == 1
    assert bias_of(outputs / "studies" / "plain" / "trials" / "0") == 0
    assert bias_of("seeds") == 2
    assert bias_of(outputs / "runs" / "one" / "best.pt") == 3
    assert bias_of("0" * 31 + "1") == 3
    monkeypatch.chdir(outputs.parent)
    assert load_model("outputs/runs/one").module.state_dict()["layer.bias"].item() == 3


def test_what_is_not_there_is_said_in_one_line(outputs: Path) -> None:
    def said(run: str | Path) -> str:
        error = refusal(lambda: load_model(run, output_dir=outputs))
        assert error.key == "run"
        return error.problem

    assert "choose one of: plain, seeds" in said("other")
    assert "there is no folder" in said(outputs / "runs" / "two")
    assert "is not the folder of a run" in said(outputs / "runs")
    assert "and there is no tracking store" in said("0" * 32)
    assert not (outputs / "mlflow.db").exists()
    (outputs / "studies" / "plain" / "trials" / "1" / "best.pt").unlink()
    assert "its best trial is 1, whose files are not in" in said("plain")
    (outputs / "studies" / "plain" / "best.yaml").unlink()
    assert "no complete trial yet" in said(outputs / "studies" / "plain")
    (outputs / "runs" / "one" / "best.pt").unlink()
    (outputs / "runs" / "one" / "journal.jsonl").write_text("{}")
    assert "the run has not finished" in said(outputs / "runs" / "one")


def test_a_file_of_an_earlier_version_says_what_it_lacks(outputs: Path) -> None:
    path = outputs / "runs" / "one" / "best.pt"
    state = checkpoint.load(path)
    copy_of({name: state[name] for name in ("model", "epoch", "value", "monitor")}, path)
    assert "holds only weights: an earlier version wrote it" in refusal(lambda: load_model(path)).problem
    copy_of({**state, "facts": {"model": {}}}, path)
    assert "is of another version of sweep" in refusal(lambda: load_model(path)).problem
    copy_of({"epoch": 3, "optimizer": {}}, path)
    assert "holds no trained model" in refusal(lambda: load_model(path)).problem


def test_a_flipped_bit_is_refused(outputs: Path) -> None:
    path = outputs / "runs" / "one" / "best.pt"
    complete = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = [(record.filename, archive.read(record)) for record in archive.infolist()]
    of_facts = next(content for name, content in records if name.endswith("data.pkl"))
    of_weights = next(content for name, content in records if name.endswith("data/0"))
    for place in (complete.index(of_facts) + len(of_facts) // 2, complete.index(of_weights)):
        path.write_bytes(complete[:place] + bytes([complete[place] ^ 1]) + complete[place + 1 :])
        with pytest.raises(Damaged):
            load_model(path)


def test_the_code_of_a_model_must_be_allowed_and_fit(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = outputs / "runs" / "one" / "best.pt"
    state = checkpoint.load(path)
    copy_of({**state, "facts": {**state["facts"], "model": {"_target_": "os.system", "command": "x"}}}, path)
    assert "'os.system' is not an allowed target" in refusal(lambda: load_model(path)).problem
    copy_of({**state, "facts": {**state["facts"], "model": {"_target_": "sweep.models.MLP", "widths": [3]}}}, path)
    assert "the stored weights do not fit sweep.models.MLP" in refusal(lambda: load_model(path)).problem
