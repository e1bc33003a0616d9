"""What of a model can be stacked: its weights as rows of a matrix, its dropout masks as tensors that are handed in."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from sweep.training.evaluate import LossFn
from sweep.training.runtime import in_precision, reproducible
from sweep.utils.errors import one_line


class Unpackable(Exception):
    """Trials of this kind have to train one at a time; the message says why."""


class FlatParameters:
    """Where a model's weights lie in a row. used: names of the parameters that its output depends on."""

    def __init__(self, model: nn.Module, used: set[str]) -> None:
        parameters = dict(model.named_parameters())
        trained = {name: weight for name, weight in parameters.items() if weight.requires_grad and name in used}
        canonical = {id(weight): name for name, weight in parameters.items()}
        stored = model.state_dict(keep_vars=True)
        self._stored_as = {name: canonical.get(id(tensor), name) for name, tensor in stored.items()}  # tied weights
        self.names = list(trained)
        self.places = [list(parameters).index(name) for name in self.names]
        self.fixed = {name: tensor.detach() for name, tensor in stored.items() if self._stored_as[name] not in trained}
        self._shapes = [weight.shape for weight in trained.values()]
        self._sizes = [weight.numel() for weight in trained.values()]
        self.size = sum(self._sizes)
        dtypes = {weight.dtype for weight in trained.values()}
        if len(dtypes) != 1:
            raise Unpackable(f"the model's weights are of several types ({', '.join(sorted(map(str, dtypes)))})")
        self.dtype = dtypes.pop()

    def row(self, weights: Mapping[str, Tensor]) -> Tensor:
        """A `state_dict` as one row, (P,)."""
        return torch.cat([weights[name].flatten() for name in self.names])

    def split(self, row: Tensor) -> list[Tensor]:
        """A row (P,) as tensors of their own shapes, without a copy."""
        return [part.view(shape) for part, shape in zip(row.split(self._sizes), self._shapes, strict=True)]

    def parts(self, stacked: Tensor) -> list[Tensor]:
        """Rows (n, P) as those of each parameter, (n, size)."""
        return [part.contiguous() for part in stacked.split(self._sizes, dim=1)]

    def shaped(self, parts: Iterable[Tensor]) -> dict[str, Tensor]:
        """Parameters (n, size) as stacked tensors (n, *shape) by name."""
        named = zip(self.names, parts, self._shapes, strict=True)
        return {name: part.unflatten(1, shape) if shape else part.squeeze(1) for name, part, shape in named}

    def views(self, stacked: Tensor) -> dict[str, Tensor]:
        """Rows (n, P) as stacked tensors (n, *shape) by name, without a copy."""
        return self.shaped(stacked.split(self._sizes, dim=1))

    def state_dict(self, row: Tensor, fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A row (P,) and what is not trained as the model's `state_dict`."""
        tensors = {**dict(zip(self.names, self.split(row), strict=True)), **fixed}
        return {name: tensors[stored_as] for name, stored_as in self._stored_as.items()}


class Masked(nn.Module):
    """Dropout with a mask that is handed in."""

    mask: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.register_buffer("mask", torch.empty(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask if self.training else x


def with_masks(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """A copy that takes its dropout masks as buffers."""
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
    """The tensor that reaches a dropout layer. The GPU's random numbers depend on its type, too."""

    shape: torch.Size
    dtype: torch.dtype


def rehearsed(
    model: nn.Module, loss_fn: LossFn, precision: str, x: Tensor, y: Tensor
) -> tuple[dict[str, MaskLike], set[str]]:
    """Trains a copy for one batch. Returns what reaches its dropout layers, by name and in the order of drawing, and
    the names of the parameters that get a gradient. Raises Unpackable."""
    model = copy.deepcopy(model).train()
    for name, module in model.named_modules():
        if getattr(module, "track_running_stats", False):
            raise Unpackable(f"{type(module).__name__} ('{name}') keeps running statistics")
    calls: list[tuple[str, MaskLike]] = []
    for name, module in model.named_modules():
        if type(module) is nn.Dropout and module.p > 0:
            module.register_forward_pre_hook(partial(_note, calls, name))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with reproducible(x.device), torch.enable_grad():
            loss_fn(in_precision(precision, model, x), y).backward()
    except Exception as error:  # whatever the model raises: alone, the trial fails at the step where it does
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
    """Draw a mask as `torch.nn.functional.dropout` draws it on the generator's device: 0, or 1 / (1 - p).

    Where p is 1, nothing is left and torch draws nothing.
    """
    if p == 1:
        return torch.zeros(like.shape, device=random.device)
    if random.device.type != "cuda":
        return torch.empty(like.shape).bernoulli_(1 - p, generator=random).div_(1 - p)
    # CUDA's dropout kernel has an order of drawing of its own, and knows the device's default generator only.
    default = torch.cuda.default_generators[random.device.index]
    before = default.get_state()
    default.set_state(random.get_state())
    mask = functional.dropout(torch.ones(like.shape, dtype=like.dtype, device=random.device), p)
    random.set_state(default.get_state())
    default.set_state(before)
    return mask
