"""Parts that the models share: activations by name, and initial weights."""

from collections.abc import Sequence

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def activation(name: str) -> nn.Module:
    """Make an activation layer. Raises ValueError if the name is unknown."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation '{name}' is unknown; choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def xavier_(model: nn.Module) -> None:
    """Initialise linear and convolutional layers in place, drawing from torch's global generator.

    Weights are uniform in +-sqrt(6 / (n_in + n_out)) (Glorot & Bengio 2010), biases zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def positive_sizes(name: str, sizes: list[int]) -> list[int]:
    """Return `sizes`. Raises ValueError if one is below 1. name: the argument's name, for the message."""
    if any(size < 1 for size in sizes):
        raise ValueError(f"{name} must be >= 1 each, got {sizes}")
    return sizes


def require_image(in_shape: Sequence[int]) -> None:
    """Raise ValueError unless the shape of a sample is that of an image, (channels, height, width)."""
    if len(in_shape) != 3:
        shape = tuple(in_shape)
        raise ValueError(f"needs images (channels, height, width), but a sample has shape {shape}; try model=mlp")
