"""One update of every trial in a pack: gradients by vmap, then the optimizer's rule. It can be compiled."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from sweep.config.nodes import Trainer
from sweep.tasks.task import BatchLoss
from sweep.training.packed.parameters import FlatParameters
from sweep.training.packed.rule import Rule
from sweep.training.packed.tracing import TracedFunction
from sweep.training.runtime import in_precision

Coefficients = Sequence[Mapping[str, Tensor]]  # of the rule of each group in a layout, by name: (n, 1) each
Parts = dict[str, list[Tensor]]  # what an update changes, in parts (n, size): the weights under "", and the state
_WORTH_A_TRACE = 20_000  # updates, over all rows: about a second, which is what a trace takes
_CLIP_EPS = 1e-6  # as in torch's clip_grad_norm_


class Update:
    """Updates n rows of weights, (n, P), in the order of a layout."""

    def __init__(
        self,
        model: nn.Module,
        layout: FlatParameters,
        loss_fn: BatchLoss,
        rules: Sequence[Rule],
        trainer: Trainer,
    ) -> None:
        """Prepare updates; nothing is traced or compiled yet.

        Args:
            model: takes its dropout masks as buffers.
            layout: where the weights lie in a row.
            loss_fn: the mean loss over a batch.
            rules: of each group in the layout.
            trainer: the settings of any of the trials; its numbers do not matter.
        """
        self._model, self._layout, self._loss_fn, self._rules = model, layout, loss_fn, rules
        self._clips_norm, self._clips_value = trainer.clip_norm is not None, trainer.clip_value is not None
        self._precision = trainer.precision
        self.is_compiled = trainer.compile
        self._traced = TracedFunction(self.gradients, _WORTH_A_TRACE)
        self._compiled = TracedFunction(self._out_of_place, is_compiled=True) if trainer.compile else None

    def __call__(
        self, trained: Parts, extra: dict[str, Tensor], batch: tuple[Tensor, ...], c: Coefficients
    ) -> tuple[Tensor, Parts]:
        """Update all rows once. Return the losses, (n,), and the new value of `trained`.

        Args:
            trained: weights and state. They may be modified in place; do not use them afterwards.
            extra: stacked tensors that are not trained, and dropout masks, by name.
            batch: inputs, (n, B, *in_shape); targets, (n, B, ...); and weights, (n, B), if samples have some.
            c: the coefficients of the rules. Those for clipping are in the first group's.
        """
        if self._compiled is None:
            return self._in_place(trained, extra, batch, c)
        return self._compiled(batch[0].shape[:2], trained, extra, batch, c)

    def parts(self, stacked: Tensor) -> list[Tensor]:
        """Divide rows (n, P) into the parts that an update takes.

        An eager update takes complete rows, so that there are few operations. In a compiled update the number of
        operations costs nothing, so each parameter is a part: the gradients need not be concatenated.
        """
        return self._layout.parts(stacked) if self.is_compiled else [stacked]

    def outputs(self, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        """Return the outputs (B, out_features) of one trial's model with these tensors."""
        return in_precision(self._precision, lambda x: functional_call(self._model, tensors, (x,)), x)

    def gradients(self, w: Tensor, extra: dict[str, Tensor], *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients (n, P) and losses (n,) of weights (n, P)."""
        grads, losses = self._gradients_by_parameter(self._layout.views(w), extra, batch)
        return torch.cat(grads, dim=1), losses

    def _gradients_by_parameter(
        self, weights: dict[str, Tensor], extra: dict[str, Tensor], batch: tuple[Tensor, ...]
    ) -> tuple[list[Tensor], Tensor]:
        """Return the gradients of stacked parameters, (n, size) each in the layout's order, and the losses (n,)."""

        def loss(weights: dict[str, Tensor], extra: dict[str, Tensor], x: Tensor, *labels: Tensor) -> Tensor:
            return self._loss_fn(self.outputs({**weights, **extra}, x), *labels)

        grads, losses = vmap(grad_and_value(loss))(weights, extra, *batch)
        n = losses.shape[0]  # not `len`, which a trace takes for a constant
        return [grads[name].reshape(n, -1) for name in self._layout.names], losses

    def _in_place(
        self, trained: Parts, extra: dict[str, Tensor], batch: tuple[Tensor, ...], c: Coefficients
    ) -> tuple[Tensor, Parts]:
        (w,) = trained[""]
        grads, losses = self._traced(batch[0].shape[:2], w, extra, *batch)
        self._apply(self._by_group(trained), self._clipped(self._layout.by_group(grads), c), c)
        return losses, trained

    def step(self, trained: Parts, grads: Tensor, c: Coefficients) -> None:
        """Change complete rows in place by their gradients (n, P), without clipping."""
        self._apply(self._by_group(trained), self._layout.by_group(grads), c)

    def _by_group(self, trained: Parts) -> Parts:
        return {name: self._layout.by_group(rows) for name, (rows,) in trained.items()}

    def _out_of_place(
        self, trained: Parts, extra: dict[str, Tensor], batch: tuple[Tensor, ...], c: Coefficients
    ) -> tuple[Tensor, Parts]:
        """Update copies and return them.

        This is for the compiler: it implements an in-place change of an input by copying the result over it at the end,
        which takes a sixth of an update.
        """
        trained = {name: [part.clone() for part in parts] for name, parts in trained.items()}
        grads, losses = self._gradients_by_parameter(self._layout.shaped(trained[""]), extra, batch)
        self._apply(trained, self._clipped(grads, c), c, self._layout.group_of)
        return losses, trained

    def _clipped(self, grads: list[Tensor], c: Coefficients) -> list[Tensor]:
        """Return the gradients, clipped as the trials ask for."""
        if self._clips_value:
            grads = [g.clamp(-c[0]["clip_value"], c[0]["clip_value"]) for g in grads]
        if self._clips_norm:  # scale each row to g * min(1, clip_norm / |g|), as torch's clip_grad_norm_ does
            norms = torch.stack([torch.linalg.vector_norm(g, dim=1, keepdim=True) for g in grads])
            scale = (c[0]["clip_norm"] / (torch.linalg.vector_norm(norms, dim=0) + _CLIP_EPS)).clamp(max=1.0)
            grads = [g * scale for g in grads]
        return grads

    def _apply(self, trained: Parts, grads: list[Tensor], c: Coefficients, groups: Iterable[int] | None = None) -> None:
        """Change the weights and the state in place by the gradients, part by part.

        groups: the group of each part; by default, each part is a group.
        """
        of_parts = zip(range(len(grads)) if groups is None else groups, trained[""], grads, strict=True)
        for i, (group, w, g) in enumerate(of_parts):
            self._rules[group].update(w, g, {name: parts[i] for name, parts in trained.items()}, c[group])
