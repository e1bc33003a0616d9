"""Fully connected models."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from sweep.models.layers import activation, positive_sizes, xavier_


class MLP(nn.Module):
    """A multilayer perceptron: linear layers, each hidden one followed by an activation and dropout.

    The input (B, *in_shape) is flattened to (B, in_features). The output is (B, out_features). The weights are
    Xavier-uniform.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        widths: Sequence[int] = (64, 64),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        """Make the model.

        Args:
            in_features: how many numbers a flattened sample has.
            out_features: how many outputs a sample has.
            widths: the size of each hidden layer.
            activation: a name in `ACTIVATIONS`.
            dropout: the probability that a hidden unit is dropped.

        Raises:
            ValueError: a width is below 1, or the activation is unknown.
        """
        super().__init__()
        sizes = [in_features, *positive_sizes("widths", list(widths))]
        hidden = [layer for n_in, n_out in pairwise(sizes) for layer in _hidden(n_in, n_out, activation, dropout)]
        self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], out_features))
        xavier_(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))


class Linear(nn.Module):
    """One affine map of the flattened input, (B, *in_shape) -> (B, out_features), with Xavier-uniform weights."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_features, out_features)
        xavier_(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


def _hidden(n_in: int, n_out: int, name: str, dropout: float) -> list[nn.Module]:
    layer = [nn.Linear(n_in, n_out), activation(name)]
    return [*layer, nn.Dropout(dropout)] if dropout else layer
