import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sweep.models import MLP, ConvNet, Linear
from sweep.models.layers import ACTIVATIONS


def weights_and_biases(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert layers
    assert all(layer.bias is not None for layer in layers)
    return [(layer.weight.detach(), layer.bias.detach()) for layer in layers if layer.bias is not None]


def fans(weight: Tensor) -> tuple[int, int]:
    """n_in and n_out; a convolution counts every pixel of its kernel."""
    n_pixels = math.prod(weight.shape[2:])
    return weight.shape[1] * n_pixels, weight.shape[0] * n_pixels


@pytest.mark.parametrize(
    "make",
    [
        lambda: MLP(in_features=30, out_features=20, widths=[200, 100]),
        lambda: Linear(in_features=300, out_features=50),
        lambda: ConvNet(in_shape=(3, 8, 8), out_features=40, channels=[32, 48]),
    ],
    ids=["mlp", "linear", "convnet"],
)
def test_weights_are_xavier_uniform_and_biases_zero(make):
    torch.manual_seed(0)
    for weight, bias in weights_and_biases(make()):
        n_in, n_out = fans(weight)
        bound = math.sqrt(6 / (n_in + n_out))
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.98 * bound  # of hundreds of draws, some come near
        assert_close(weight.std().item(), bound / math.sqrt(3), rtol=0.1, atol=0)  # what is uniform, not normal
        assert_close(weight.mean().item(), 0.0, rtol=0, atol=0.1 * bound)
        assert not bias.any()


def test_initial_weights_follow_the_generators_seed():
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return weights_and_biases(MLP(in_features=2, out_features=1))[0][0]

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("widths", [[], [5], [7, 6, 5]])
def test_an_mlp_has_the_given_widths_with_an_activation_after_each(widths: list[int]):
    model = MLP(in_features=4, out_features=3, widths=widths, activation="tanh")
    assert [weight.shape[0] for weight, _ in weights_and_biases(model)] == [*widths, 3]
    assert sum(isinstance(m, nn.Tanh) for m in model.modules()) == len(widths)
    assert model(torch.randn(9, 4)).shape == (9, 3)


def test_an_mlp_computes_what_its_formula_says():
    model = MLP(in_features=2, out_features=1, widths=[3])
    (w1, b1), (w2, b2) = weights_and_biases(model)
    b1.uniform_(-1, 1)
    b2.uniform_(-1, 1)
    x = torch.randn(5, 2)
    assert_close(model(x), torch.clamp(x @ w1.T + b1, min=0) @ w2.T + b2)


def test_the_activation_is_relu_unless_chosen():
    assert any(isinstance(m, nn.ReLU) for m in MLP(in_features=1, out_features=1).modules())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_the_function_of_its_name(name: str):
    x = torch.randn(50, 3)
    model = MLP(in_features=3, out_features=2, widths=[8], activation=name)
    (w1, _), (w2, _) = weights_and_biases(model)
    assert_close(model(x), getattr(nn.functional, name)(x @ w1.T) @ w2.T)
    images = x[:, :, None, None].expand(-1, -1, 2, 2)
    convnet = ConvNet(in_shape=(3, 2, 2), out_features=2, channels=[8], activation=name)
    (kernel, _), (head, _) = weights_and_biases(convnet)
    act = getattr(nn.functional, name)(nn.functional.conv2d(images, kernel, padding=1))
    assert_close(convnet(images), nn.functional.max_pool2d(act, 2).flatten(1) @ head.T)


def test_images_are_flattened_for_models_that_take_rows():
    images = torch.randn(5, 3, 4, 4)
    for model in (MLP(in_features=48, out_features=2), Linear(in_features=48, out_features=2)):
        assert model(images).shape == (5, 2)
        assert_close(model(images), model(images.reshape(5, 48)))


def test_a_linear_model_is_one_affine_map():
    model = Linear(in_features=3, out_features=2)
    ((weight, bias),) = weights_and_biases(model)
    bias.uniform_(-1, 1)
    x = torch.randn(4, 3)
    assert_close(model(x), x @ weight.T + bias)


def test_dropout_acts_in_training_only():
    for model, x in [
        (MLP(in_features=4, out_features=1, widths=[64], dropout=0.5), torch.randn(8, 4)),
        (ConvNet(in_shape=(1, 8, 8), out_features=1, dropout=0.5), torch.randn(8, 1, 8, 8)),
    ]:
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("in_shape", [(1, 8, 8), (3, 9, 5), (2, 4, 7)])
def test_a_convnet_takes_images_of_any_size_that_can_be_halved(in_shape: tuple[int, ...]):
    model = ConvNet(in_shape=in_shape, out_features=10, channels=[4, 6])
    assert model(torch.randn(5, *in_shape)).shape == (5, 10)
    assert [weight.shape[0] for weight, _ in weights_and_biases(model)] == [4, 6, 10]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ConvNet(in_shape=(10,), out_features=1), "needs images .* shape \\(10,\\); try model=mlp"),
        (lambda: ConvNet(in_shape=(1, 8, 3), out_features=1), "2 channels halve an image of 8 x 3 too often"),
        (lambda: ConvNet(in_shape=(1, 8, 8), out_features=1, channels=[4, 0]), r"channels must be >= 1 each"),
        (lambda: MLP(in_features=1, out_features=1, widths=[8, -1]), r"widths must be >= 1 each, got \[8, -1\]"),
        (lambda: MLP(in_features=1, out_features=1, dropout=1.5), "dropout"),
        (lambda: MLP(in_features=1, out_features=1, activation="rleu"), "'rleu' is unknown; choose one of relu, "),
        (lambda: ConvNet(in_shape=(1, 8, 8), out_features=1, activation="rleu"), "'rleu' is unknown"),
    ],
    ids=["no image", "small image", "no channel", "bad width", "dropout", "mlp activation", "convnet activation"],
)
def test_a_model_that_cannot_be_made_says_why(make, says: str):
    with pytest.raises(ValueError, match=says):
        make()
