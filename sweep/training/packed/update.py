"""One update of every trial in a pack: gradients by vmap, then the optimizer's rule; compiled, or as it is."""

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from sweep.config.nodes import Trainer
from sweep.training.evaluate import LossFn
from sweep.training.packed.parameters import FlatParameters
from sweep.training.packed.rules import Rule
from sweep.training.packed.tracing import TracedFunction
from sweep.training.runtime import in_precision

Parts = dict[str, list[Tensor]]  # what an update changes, part by part, (n, size) each: weights, named "", and state
_WORTH_A_TRACE = 20_000  # updates, over all rows: a second's worth of them
_CLIP_EPS = 1e-6  # torch's clip_grad_norm_ adds it


class Update:
    """Updates n rows of weights, (n, P) in the order of `layout`.

    model: takes dropout masks as buffers. trainer: of any of the trials; its numbers do not matter.
    """

    def __init__(self, model: nn.Module, layout: FlatParameters, loss_fn: LossFn, rule: Rule, trainer: Trainer) -> None:
        self._model, self._layout, self._loss_fn, self._rule = model, layout, loss_fn, rule
        self._clips, self._precision = trainer.clip_norm is not None, trainer.precision
        self.is_compiled = trainer.compile
        self._traced = TracedFunction(self.gradients, _WORTH_A_TRACE)
        self._compiled = TracedFunction(self._anew, is_compiled=True) if trainer.compile else None

    def __call__(
        self, trained: Parts, extra: dict[str, Tensor], x: Tensor, y: Tensor, c: dict[str, Tensor]
    ) -> tuple[Tensor, Parts]:
        """Returns the losses, (n,), and what is `trained` now; whether what it was is changed is left open.

        extra: stacked tensors that are not trained, and masks. c: the rule's columns, (n, 1) each.
        """
        if self._compiled is None:
            return self._in_place(trained, extra, x, y, c)
        return self._compiled(x.shape[:2], trained, extra, x, y, c)

    def parts(self, stacked: Tensor) -> list[Tensor]:
        """Rows (n, P) as an update takes them: all of a row at once, which makes few operations; or, where it is
        compiled and they cost nothing, each parameter by itself, so that no gradients have to be put together."""
        return self._layout.parts(stacked) if self.is_compiled else [stacked]

    def outputs(self, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        """Of one trial with these tensors, (B, out_features)."""
        return in_precision(self._precision, lambda x: functional_call(self._model, tensors, (x,)), x)

    def gradients(self, w: Tensor, extra: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients (n, P) and losses (n,) of weights (n, P)."""
        grads, losses = self._of_parameters(self._layout.views(w), extra, x, y)
        return torch.cat(grads, dim=1), losses

    def _of_parameters(
        self, weights: dict[str, Tensor], extra: dict[str, Tensor], x: Tensor, y: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """The same of stacked parameters by name: gradients (n, size) of each."""

        def loss(weights: dict[str, Tensor], extra: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return self._loss_fn(self.outputs({**weights, **extra}, x), y)

        grads, losses = vmap(grad_and_value(loss))(weights, extra, x, y)
        n = losses.shape[0]  # `len` would be a number for ever to what traces it
        return [grads[name].reshape(n, -1) for name in self._layout.names], losses

    def _in_place(
        self, trained: Parts, extra: dict[str, Tensor], x: Tensor, y: Tensor, c: dict[str, Tensor]
    ) -> tuple[Tensor, Parts]:
        (w,) = trained[""]
        grads, losses = self._traced(x.shape[:2], w, extra, x, y)
        self._apply(trained, [grads], c)
        return losses, trained

    def _anew(
        self, trained: Parts, extra: dict[str, Tensor], x: Tensor, y: Tensor, c: dict[str, Tensor]
    ) -> tuple[Tensor, Parts]:
        """With new tensors, to be compiled: a compiler changes what it is given by a copy at the end, which takes a
        sixth of an update."""
        trained = {name: [part.clone() for part in parts] for name, parts in trained.items()}
        grads, losses = self._of_parameters(self._layout.shaped(trained[""]), extra, x, y)
        self._apply(trained, grads, c)
        return losses, trained

    def _apply(self, trained: Parts, grads: list[Tensor], c: dict[str, Tensor]) -> None:
        """Changes the weights and the state by their gradients, part by part."""
        if self._clips:
            norms = torch.stack([torch.linalg.vector_norm(g, dim=1, keepdim=True) for g in grads])
            scale = (c["clip_norm"] / (torch.linalg.vector_norm(norms, dim=0) + _CLIP_EPS)).clamp(max=1.0)
            grads = [g * scale for g in grads]
        for i, (w, g) in enumerate(zip(trained[""], grads, strict=True)):
            self._rule.update(w, g, {name: parts[i] for name, parts in trained.items()}, c)
