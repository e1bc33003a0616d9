"""Stacking models: weights become rows of a matrix, and dropout masks become inputs.

Shapes: n is the number of rows, P the number of trained weights of one model. The order of the weights in a row is that
of the optimizer, each flattened: the weights of a parameter group lie side by side.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from sweep.tasks.task import BatchLoss
from sweep.training.runtime import in_precision, reproducible
from sweep.utils.errors import one_line


class Unpackable(Exception):
    """Trials of this kind must train one at a time. The message gives the reason."""


class FlatParameters:
    """Where a model's weights lie in a row.

    Attributes:
        names: of the trained parameters, in the order of the row.
        places: their indices among all parameters, as in an optimizer's state.
        groups: the numbers of the optimizer's parameter groups that have trained parameters.
        group_of: for each of `names`, the index of its group in `groups`.
        fixed: all other tensors of the `state_dict`, by name.
        size: P, the length of a row.
    """

    def __init__(self, model: nn.Module, used: set[str], groups: Sequence[Sequence[str]]) -> None:
        """Lay out the trained parameters. Raises Unpackable if they have several dtypes.

        Args:
            model: the model.
            used: names of the parameters that the output depends on.
            groups: names of all parameters, in the optimizer's groups and in its order.
        """
        parameters = dict(model.named_parameters())
        order = [name for names in groups for name in names]
        trained = {name: w for name in order if (w := parameters[name]).requires_grad and name in used}
        canonical = {id(weight): name for name, weight in parameters.items()}
        stored = model.state_dict(keep_vars=True)
        self._stored_as = {name: canonical.get(id(tensor), name) for name, tensor in stored.items()}  # tied weights
        self.names = list(trained)
        self.places = [order.index(name) for name in self.names]
        numbers = {name: number for number, names in enumerate(groups) for name in names}
        self.groups = sorted({numbers[name] for name in self.names})
        self.group_of = [self.groups.index(numbers[name]) for name in self.names]
        self.fixed = {name: tensor.detach() for name, tensor in stored.items() if self._stored_as[name] not in trained}
        self._shapes = [weight.shape for weight in trained.values()]
        self._sizes = [weight.numel() for weight in trained.values()]
        self.size = sum(self._sizes)
        sized = [*zip(self.group_of, self._sizes, strict=True)]
        self._group_sizes = [sum(n for of, n in sized if of == i) for i in range(len(self.groups))]
        dtypes = {weight.dtype for weight in trained.values()}
        if len(dtypes) != 1:
            raise Unpackable(f"the model's weights are of several types ({', '.join(sorted(map(str, dtypes)))})")
        self.dtype = dtypes.pop()

    def places_of(self, group: int) -> list[int]:
        """Return those of `places` whose parameters are in a group. group: an index in `groups`."""
        return [place for place, of in zip(self.places, self.group_of, strict=True) if of == group]

    def row(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Flatten a `state_dict` into one row, (P,)."""
        return torch.cat([weights[name].flatten() for name in self.names])

    def split(self, row: Tensor) -> list[Tensor]:
        """Split a row (P,) into the parameters' tensors, without a copy."""
        return [part.view(shape) for part, shape in zip(row.split(self._sizes), self._shapes, strict=True)]

    def parts(self, stacked: Tensor) -> list[Tensor]:
        """Split rows (n, P) into one contiguous tensor (n, size) for each parameter."""
        return [part.contiguous() for part in stacked.split(self._sizes, dim=1)]

    def by_group(self, stacked: Tensor) -> list[Tensor]:
        """View rows (n, P) as the tensors (n, size) of the optimizer's `groups`, without a copy."""
        return [stacked] if len(self.groups) == 1 else [*stacked.split(self._group_sizes, dim=1)]

    def shaped(self, parts: Iterable[Tensor]) -> dict[str, Tensor]:
        """Reshape the parameters (n, size) to stacked tensors (n, *shape), by name."""
        named = zip(self.names, parts, self._shapes, strict=True)
        return {name: part.unflatten(1, shape) if shape else part.squeeze(1) for name, part, shape in named}

    def views(self, stacked: Tensor) -> dict[str, Tensor]:
        """View rows (n, P) as stacked tensors (n, *shape), by name, without a copy."""
        return self.shaped(stacked.split(self._sizes, dim=1))

    def state_dict(self, row: Tensor, fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Combine a row (P,) and the tensors that are not trained to the model's `state_dict`."""
        tensors = {**dict(zip(self.names, self.split(row), strict=True)), **fixed}
        return {name: tensors[stored_as] for name, stored_as in self._stored_as.items()}


class Masked(nn.Module):
    """Dropout that multiplies by a given mask, the buffer `mask`."""

    mask: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.register_buffer("mask", torch.empty(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask if self.training else x


def with_masks(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Return a copy of the model in which the named dropout layers take their masks as buffers."""
    model = copy.deepcopy(model)
    for name in names:
        model.set_submodule(name, Masked(dropout_p(model, name)))
    return model


def dropout_p(model: nn.Module, dropout: str) -> float:
    layer = model.get_submodule(dropout)
    assert isinstance(layer, nn.Dropout | Masked)
    return layer.p


@dataclass(frozen=True)
class MaskLike:
    """Shape and dtype of a dropout layer's input. The random numbers of a GPU depend on the dtype too."""

    shape: torch.Size
    dtype: torch.dtype


def rehearsed(
    model: nn.Module, loss_fn: BatchLoss, precision: str, batch: tuple[Tensor, ...]
) -> tuple[dict[str, MaskLike], set[str]]:
    """Train a copy of the model on one batch, inputs and labels, to see what has to be stacked.

    Return the inputs of its dropout layers, by name in the order of drawing, and the names of the parameters that get a
    gradient. Raises Unpackable if the model changes a buffer, calls a dropout layer twice, or fails.
    """
    model = copy.deepcopy(model).train()
    for name, module in model.named_modules():
        if getattr(module, "track_running_stats", False):
            raise Unpackable(f"{type(module).__name__} ('{name}') keeps running statistics")
    calls: list[tuple[str, MaskLike]] = []
    for name, module in model.named_modules():
        if type(module) is nn.Dropout and module.p > 0:
            module.register_forward_pre_hook(partial(_note, calls, name))
    x, *labels = batch
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with reproducible(x.device), torch.enable_grad():
            loss_fn(in_precision(precision, model, x), *labels).backward()
    except Exception as error:  # the model may raise anything; trained sequentially, it fails at the right step
        raise Unpackable(f"the model raises in training ({one_line(error, 160)})") from error
    if any(not torch.equal(buffer, before[name]) for name, buffer in model.named_buffers()):
        raise Unpackable("the model changes its buffers while it trains")
    masks = dict(calls)
    if len(masks) < len(calls):
        raise Unpackable("the model draws from one dropout layer several times")
    return masks, {name for name, weight in model.named_parameters() if weight.grad is not None}


def _note(calls: list[tuple[str, MaskLike]], name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    calls.append((name, MaskLike(inputs[0].shape, inputs[0].dtype)))


def draw_mask(like: MaskLike, p: float, random: torch.Generator) -> Tensor:
    """Draw the mask that `torch.nn.functional.dropout` would draw on the generator's device.

    An element is 0 with probability p, and else 1 / (1 - p).
    """
    if p == 1:  # torch draws nothing from the generator
        return torch.zeros(like.shape, device=random.device)
    if random.device.type != "cuda":
        return torch.empty(like.shape).bernoulli_(1 - p, generator=random).div_(1 - p)
    # CUDA's dropout kernel has its own order of drawing and accepts only the device's default generator.
    default = torch.cuda.default_generators[random.device.index]
    before = default.get_state()
    default.set_state(random.get_state())
    mask = functional.dropout(torch.ones(like.shape, dtype=like.dtype, device=random.device), p)
    random.set_state(default.get_state())
    default.set_state(before)
    return mask
