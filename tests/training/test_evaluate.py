"""sweep/training/evaluate.py: metrics against numpy and scikit-learn."""

import weakref

import numpy as np
import pytest
import torch
import torchmetrics
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, mean_squared_error, r2_score
from torch import Tensor, nn

from sweep.config.nodes import Split
from sweep.data import Samples
from sweep.data.noisy_sine import noisy_sine
from sweep.data.split import divide
from sweep.tasks import Classification, LanguageModel, Regression, metrics, split_values
from sweep.training import tensors
from sweep.training.checks import check_metrics
from sweep.training.evaluate import evaluate, is_finite, noise_floor, predict
from sweep.training.evaluate import test as measured
from sweep.training.tensors import TensorData, TensorSplit, to_device
from sweep.utils.errors import ConfigError


def regression(y_std: Tensor, y_mean: Tensor | None = None) -> Regression:
    functions = {"mse": metrics.mse, "mae": metrics.mae, "r2": metrics.r2}
    return Regression(nn.MSELoss(), functions, torch.zeros_like(y_std) if y_mean is None else y_mean, y_std)


def test_regression_metrics_are_in_the_targets_own_units() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 3)).astype(np.float32), rng.normal(size=(50, 2)).astype(np.float32)
    y_mean, y_std = np.array([300.0, -2.0], np.float32), np.array([40.0, 0.1], np.float32)
    split = TensorSplit(torch.from_numpy(x), torch.from_numpy(y), None)
    weights = torch.from_numpy(rng.normal(size=(3, 2)).astype(np.float32))
    found = evaluate(lambda x: x @ weights, split, regression(torch.from_numpy(y_std)))
    outputs = x @ weights.numpy()
    truth, guess = y * y_std + y_mean, outputs * y_std + y_mean
    assert found == pytest.approx(
        {
            "loss": mean_squared_error(y, outputs),
            "mse": mean_squared_error(truth, guess),
            "mae": mean_absolute_error(truth, guess),
            "r2": r2_score(truth, guess),
        },
        rel=1e-4,
    )


def test_classification_metrics_equal_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    logits, y = rng.normal(size=(60, 4)).astype(np.float32), rng.integers(0, 4, size=60)
    split = TensorSplit(torch.from_numpy(logits), torch.from_numpy(y), None)
    task = Classification(nn.CrossEntropyLoss(), {"accuracy": metrics.accuracy}, 4)
    found = evaluate(lambda x: x, split, task)
    odds = np.exp(logits.astype(np.float64))
    expected = {
        "loss": log_loss(y, odds / odds.sum(axis=1, keepdims=True), labels=range(4)),
        "accuracy": accuracy_score(y, logits.argmax(axis=1)),
    }
    assert 0 < expected["accuracy"] < 1
    assert found == pytest.approx(expected, rel=1e-5)


def test_r2_is_that_of_the_targets_that_vary_or_left_out() -> None:
    split = TensorSplit(torch.zeros(5, 1), torch.ones(5, 1), None)
    assert evaluate(lambda x: x, split, regression(torch.ones(1))) == {"loss": 1.0, "mse": 1.0, "mae": 1.0}
    both = TensorSplit(torch.arange(6.0).reshape(3, 2), torch.tensor([[1.0, 5.0], [1.0, 6.0], [1.0, 8.0]]), None)
    alone = TensorSplit(both.x[:, 1:], both.y[:, 1:], None)
    found, expected = (evaluate(lambda x: x, part, regression(torch.ones(part.y.shape[1]))) for part in (both, alone))
    assert found["r2"] == pytest.approx(expected["r2"])


@pytest.mark.parametrize(("offset", "noise"), [(0.0, 0.1), (1e7, 0.1), (0.0, 1e-25)])
def test_the_noise_floor_is_exact_for_targets_far_from_zero_and_for_the_faintest_noise(offset: float, noise: float):
    rng = np.random.default_rng(0)
    clean = rng.normal(size=400) * noise
    y = offset + clean + rng.normal(size=400) * noise
    made = Samples(name="", task="regression", x=np.arange(400.0)[:, None], y=y, clean=offset + clean, noise=noise)
    splits = divide(made, Split(test=0.5))
    data = to_device(splits, torch.device("cpu"))
    floor = noise_floor(data.test.y, data.test, data, noise)  # a model that repeats the noisy targets
    assert floor["noise_ratio"] == 0
    assert floor["excess"] == pytest.approx(1, abs=0.25)


def test_the_noise_floor_compares_with_the_clean_and_the_noisy_sine() -> None:
    sigma = 0.2
    splits = divide(noisy_sine(n=3000, noise=sigma), Split(test=0.5))
    data = to_device(splits, torch.device("cpu"))
    clean = splits.test.clean
    assert clean is not None
    noise = (splits.test.y - clean) * splits.y_std

    def shifted(offset: float) -> Tensor:
        """The outputs of a model that knows the sine, but for an offset in its own units."""
        return torch.from_numpy(clean + offset / splits.y_std)

    floor = noise_floor(shifted(0.0), data.test, data, sigma)
    assert floor["excess"] == pytest.approx(0, abs=1e-9)
    assert floor["noise_ratio"] == pytest.approx(np.square(noise).mean() / sigma**2, rel=1e-4)
    assert floor["noise_ratio"] == pytest.approx(1, abs=0.1)
    off = noise_floor(shifted(0.1), data.test, data, sigma)
    assert off["excess"] == pytest.approx(0.1**2 / sigma**2, rel=1e-4)
    assert off["noise_ratio"] == pytest.approx(np.square(noise - 0.1).mean() / sigma**2, rel=1e-4)


@pytest.mark.parametrize(("of_model", "of_outputs"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_predicting_in_parts_equals_predicting_at_once(of_model: torch.dtype, of_outputs: torch.dtype) -> None:
    """In float32 at least; a model in float64 keeps its precision."""
    split = TensorSplit(torch.randn(10_001, 2), torch.zeros(10_001, 1), None)
    sizes = []

    def forward(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x.to(of_model) * 3 + 1

    outputs = predict(forward, split)
    assert len(sizes) > 1
    assert outputs.dtype == of_outputs
    assert torch.equal(outputs, (split.x.to(of_model) * 3 + 1).to(of_outputs))


def test_outputs_that_are_too_many_are_measured_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not kept, unless a metric needs them."""
    rng = np.random.default_rng(0)
    logits, y = torch.from_numpy(rng.normal(size=(50, 6, 4))), torch.from_numpy(rng.integers(0, 4, size=(50, 6)))
    split = TensorSplit(logits, y, None)
    f1 = torchmetrics.F1Score(task="multiclass", num_classes=4, average="macro")
    means = {"accuracy": metrics.accuracy, "bits_per_token": metrics.bits_per_token, "f1": f1}

    def largest(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.max()

    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def forward(x: Tensor) -> Tensor:
        nonlocal most
        outputs = x * 1.0
        alive.append(weakref.ref(outputs))
        most = max(most, sum(ref() is not None for ref in alive))
        return outputs

    for own, kept in ((means, 2), ({**means, "largest": largest}, 10)):
        task = LanguageModel(nn.CrossEntropyLoss(), own, 4)
        expected = evaluate(lambda x: x, split, task)
        with monkeypatch.context() as patched:
            patched.setattr(tensors, "MOST_OUTPUTS", 5 * 6 * 4)
            patched.setattr(split_values, "MOST_JOINED", 5 * 6 * 4)
            alive.clear()
            most = 0
            found = evaluate(forward, split, task)
            check_metrics(task, {"val": split.y})
        assert list(found) == list(expected)
        assert found == pytest.approx(expected, rel=1e-6)
        assert len(alive) == 10
        assert most <= kept
        assert (most == 10) == (kept == 10)


def test_a_metric_that_a_large_split_does_not_allow_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.zeros(50, dtype=torch.int64)
    auroc = torchmetrics.AUROC(task="multiclass", num_classes=3)
    task = Classification(nn.CrossEntropyLoss(), {"accuracy": metrics.accuracy, "auroc": auroc}, 3)
    for most in (2**25, 30):
        monkeypatch.setattr(tensors, "MOST_OUTPUTS", most)
        with pytest.raises(ConfigError, match=r"^task\.metrics\.auroc: cannot be computed on the val split"):
            check_metrics(task, {"val": y})


def test_a_loss_that_takes_no_drawn_outputs_is_not_taken_for_a_metrics_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(outputs: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("the outputs must be probabilities")

    y = torch.arange(50) % 3
    f1 = torchmetrics.F1Score(task="multiclass", num_classes=3, average="macro")
    monkeypatch.setattr(tensors, "MOST_OUTPUTS", 30)
    check_metrics(Classification(picky, {"accuracy": metrics.accuracy, "f1": f1}, 3), {"val": y})


@pytest.mark.parametrize("noise", [None, 1.0])
def test_what_is_measured_is_shown_batch_by_batch(noise: float | None) -> None:
    n = 10_001
    split = TensorSplit(torch.randn(n, 1), torch.randn(n, 1), torch.zeros(n, 1))
    data, task = TensorData(split, split, split, torch.ones(1)), regression(torch.ones(1))
    shown: list[tuple[Tensor, Tensor, Tensor]] = []
    n_computed = 0

    def forward(x: Tensor) -> Tensor:
        nonlocal n_computed
        n_computed += len(x)
        return x * 3 + 1

    found = measured(forward, data, task, noise, lambda *batch: shown.append(batch))
    assert n_computed == n
    assert found == measured(forward, data, task, noise, None)
    assert len(shown) > 1
    x, outputs, y = map(torch.cat, zip(*shown, strict=True))
    assert torch.equal(x, split.x)
    assert torch.equal(outputs, x * 3 + 1)
    assert torch.equal(y, split.y)


def test_evaluating_leaves_no_gradients_behind() -> None:
    weight = torch.ones(1, requires_grad=True)
    split = TensorSplit(torch.ones(3, 1), torch.zeros(3, 1), torch.zeros(3, 1))
    seen = []

    def forward(x: Tensor) -> Tensor:
        seen.append(x * weight)
        return seen[-1]

    task = regression(torch.ones(1))
    evaluate(forward, split, task)
    measured(forward, TensorData(split, split, split, torch.ones(1)), task, 1.0, None)
    assert len(seen) == 2
    assert not any(outputs.requires_grad for outputs in seen)


def test_one_value_that_is_not_finite_is_enough() -> None:
    assert is_finite({"loss": 1.0, "mae": 0.0})
    assert not is_finite({"loss": 1.0, "mae": float("nan")})
    assert not is_finite({"loss": float("inf"), "mae": 0.0})


def test_batches_of_different_lengths_count_by_their_tokens() -> None:
    f1 = torchmetrics.F1Score(task="multiclass", num_classes=4, average="macro")
    task = LanguageModel(nn.CrossEntropyLoss(), {"accuracy": metrics.accuracy, "f1": f1}, 4)
    draws = torch.Generator().manual_seed(0)
    shapes = [(2, 3), (4, 3), (2, 5), (1, 5), (3, 2)]
    batches = [
        (torch.randn(*shape, 4, generator=draws), torch.randint(0, 4, shape, generator=draws)) for shape in shapes
    ]
    found = task.values_by_batch(batches)
    outputs = torch.cat([logits.flatten(0, 1) for logits, _ in batches])
    targets = torch.cat([y.flatten() for _, y in batches])
    assert found["loss"].item() == pytest.approx(nn.functional.cross_entropy(outputs, targets).item())
    assert found["accuracy"].item() == pytest.approx((outputs.argmax(1) == targets).double().mean().item())
    assert found["f1"].item() == pytest.approx(f1(outputs, targets).item())
