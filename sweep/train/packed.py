"""Many trials in one pass: `Pack.train_epoch` trains a stack of weights, each row a trial of its own.

Rows differ in numbers only: weights, data order, dropout masks and hyperparameters. A trial takes a row at the start of
an epoch and leaves it at the end of one.
"""

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.fx.experimental import _config as fx_config

from sweep.errors import Diverged, one_line
from sweep.seeds import derive_seed
from sweep.train.checkpoint import kinds, random_states
from sweep.train.course import Course, Listener
from sweep.train.evaluate import LossFn, in_single_precision, measures
from sweep.train.rules import Rule
from sweep.train.runtime import in_precision, reproducible, seed_generators
from sweep.train.schedule import Row, Schedule
from sweep.train.tensors import TensorData, TensorSplit, epoch_order, stacked_batches
from sweep.train.traced import Traced

if TYPE_CHECKING:
    from sweep.config import Trainer

_EVAL_SAMPLES = 2**16  # of all rows together, at a time
_BLOCK = {"cpu": 64}  # rows updated together; the tensors of more of them do not stay in a core's cache
_FEWEST_ROWS = 8
_WORTH_A_TRACE = 20_000  # updates, over all rows: a second's worth of them
_CLIP_EPS = 1e-6  # torch's clip_grad_norm_ adds it


T = TypeVar("T")
Parts = dict[str, list[Tensor]]  # what an update changes, part by part, (n, size) each: weights, named "", and state


class Unpackable(Exception):
    """Trials of this kind have to train one at a time; the message says why."""


class Slot(Course):
    """One trial in a pack."""

    def __init__(
        self, *, schedule: Schedule, trainer: "Trainer", n_train: int, weights: Mapping[str, Tensor], rule: Rule
    ) -> None:
        """weights: the initial ones, as `state_dict` of the model."""
        super().__init__(schedule, trainer, n_train)
        self.weights = weights  # until it has its row
        self.moments: Mapping[str, Mapping[int, Tensor]] = {}  # likewise, by place among the model's parameters
        self.scalars = dict(rule.scalars)
        self.random = torch.Generator().manual_seed(derive_seed(trainer.seed, "train"))  # of dropout, as if alone
        self.listener: Listener | None = None
        self.saved_at = time.monotonic()

    def load_state_dict(self, state: dict[str, Any], rule: Rule) -> None:
        """Takes up a checkpoint that was saved between two epochs, by a pack or by a trial alone."""
        self.schedule.load_state_dict(state["schedule"])
        self.load_course_state(state)
        self.random.set_state(state["random"]["torch"])
        self.weights = state["model"]
        kept = state["optimizer"]["state"]  # by place; Adagrad keeps some of weights that are not trained, too
        if kept:
            self.moments = {name: {place: of_one[name] for place, of_one in kept.items()} for name in rule.state}
            self.scalars = {name: float(next(iter(kept.values()))[name]) for name in rule.scalars}

    @property
    def group(self) -> dict[str, Any]:
        """The hyperparameters, and the optimizer's state as far as it is numbers."""
        return {**self.schedule.optimizer.param_groups[0], **self.scalars}

    def checkpoint_due(self) -> bool:
        interval_s = self.trainer.checkpoint_interval_s
        return interval_s == 0 or 0 < interval_s <= time.monotonic() - self.saved_at


class Pack:
    """Trials of one structure, side by side. Raises Unpackable for a model that cannot be stacked."""

    def __init__(
        self,
        *,
        model: nn.Module,
        loss_fn: LossFn,
        data: TensorData,
        trainer: "Trainer",
        rule: Rule,
    ) -> None:
        """model: one of its kind, whose weights do not matter."""
        self.loss_fn, self.data, self.rule = loss_fn, data, rule
        self.device, self._trainer = data.train.x.device, trainer
        self.slots: list[Slot] = []  # row by row
        self._model = model
        self._clips = trainer.clip_norm is not None
        n_train, batch_size = len(data.train.x), trainer.batch_size
        self._mask_shapes: dict[int, dict[str, torch.Size]] = {}  # by size of the batch; of the last one, too
        used: set[str] = set()
        for size in {batch_size, n_train % batch_size or batch_size}:
            self._mask_shapes[size], used = _rehearsed(model, loss_fn, data.train.x[:size], data.train.y[:size])
        self._layout = _Layout(model, used)
        self._masked = _with_masks(model, self._mask_shapes[batch_size])
        size = self._layout.size
        self._most_rows = 0  # so far: a pack that was empty for a moment has as many again
        self._weights = torch.empty(0, size, dtype=self._layout.dtype, device=self.device)
        self._state = {name: torch.empty_like(self._weights) for name in rule.state}
        self._fixed = {name: fixed.new_empty(0, *fixed.shape) for name, fixed in self._layout.fixed.items()}
        self._refuse_unstackable()
        self._traced = Traced(self._flat_gradients, _WORTH_A_TRACE)
        self._update = _compiled(self._new_update) if trainer.compile else self._update_in_place

    def seat(self, slot: Slot) -> None:
        """Gives a trial the next free row."""
        row = len(self.slots)
        if row == len(self._weights):
            self._resize(max(_FEWEST_ROWS, 2 * row, self._most_rows))
        self.slots.append(slot)
        weights, slot.weights = slot.weights, {}
        self._weights[row] = self._layout.row(weights)
        for name, fixed in self._fixed.items():
            fixed[row] = weights[name]
        for name, stacked in self._state.items():
            if name in slot.moments:
                stacked[row] = torch.cat([slot.moments[name][place].flatten() for place in self._layout.places])
            else:
                stacked[row] = self.rule.initial(name, slot.group)
        slot.moments = {}

    def leave(self, slot: Slot) -> None:
        """Frees the trial's row, if it has one; the last one moves there."""
        if slot not in self.slots:
            return
        row, last = self.slots.index(slot), len(self.slots) - 1
        if row < last:
            for stacked in (self._weights, *self._state.values(), *self._fixed.values()):
                stacked[row] = stacked[last]
            self.slots[row] = self.slots[last]
        self.slots.pop()
        if not self.slots:
            self._resize(0)

    def _resize(self, n_rows: int) -> None:
        self._most_rows = max(self._most_rows, n_rows)

        def resized(stacked: Tensor) -> Tensor:
            made = stacked.new_zeros(n_rows, *stacked.shape[1:])
            made[: len(self.slots)] = stacked[: len(self.slots)]
            return made

        self._weights = resized(self._weights)
        self._state = {name: resized(stacked) for name, stacked in self._state.items()}
        self._fixed = {name: resized(stacked) for name, stacked in self._fixed.items()}

    def train_epoch(self) -> dict[Slot, Exception | None]:
        """One epoch of every trial, told to their listeners. Returns those that have come to their end.

        With what ended them: None for one that is complete, Diverged, or what its listener raised.
        """
        ended: dict[Slot, Exception | None] = {}
        for slot in [*self.slots]:
            try:
                if slot.is_over:  # it was when it was saved
                    ended[slot] = None
                else:
                    slot.start_epoch()
            except Exception as error:  # whatever a scheduler raises
                ended[slot] = error
            if slot in ended:
                self.leave(slot)
        losses = self._train()  # (n, n_updates)
        for slot, values in zip(self.slots, losses, strict=True):
            try:
                slot.record(values)
            except Diverged as diverged:
                ended[slot] = diverged
            assert slot.listener is not None
            slot.tell_steps(slot.listener)
        metrics_of = self.evaluate("val") if self.slots else []
        for row, (slot, val) in enumerate(zip(self.slots, metrics_of, strict=True)):
            if slot in ended:
                continue
            try:
                metrics = slot.finish_epoch(val, lambda row=row: self.weights(row))
                assert slot.listener is not None
                slot.listener.epoch(slot.epoch, metrics)
            except Exception as error:
                ended[slot] = error
            else:
                if slot.is_over:
                    ended[slot] = None
        return ended

    def _train(self) -> list[list[float]]:
        """The updates of an epoch. Returns the loss of each, by row."""
        size = _BLOCK.get(self.device.type, max(1, len(self.slots)))
        self._masked.train()
        losses = []
        for first in range(0, len(self.slots), size):
            losses += self._train_block(first, self.slots[first : first + size])
        return losses

    def _train_block(self, first: int, slots: list[Slot]) -> list[list[float]]:
        """The same for these slots, in the rows from `first` on."""
        width = max(len(slots), 2) if self._trainer.compile else len(slots)  # a width of 1 would be compiled anew
        rows = slice(first, first + width)
        orders = [epoch_order(s.trainer.seed, s.epoch + 1, len(self.data.train.x)) for s in slots]
        order = torch.stack(_filled(orders, width)).to(self.device)  # (width, n_train)
        kept = {"": self._weights[rows], **{name: stacked[rows] for name, stacked in self._state.items()}}
        fixed = {name: stacked[rows].clone() for name, stacked in self._fixed.items()}
        trained = {name: self._parts(stacked) for name, stacked in kept.items()}
        losses = []
        with torch.no_grad():
            batches = stacked_batches(self.data.train, order, self._trainer.batch_size)
            for columns, (x, y) in zip(self._table(slots, width), batches, strict=True):
                masks = self._draw_masks(slots, x.shape[1], width)
                of_rows, trained = self._update(trained, fixed | masks, x, y, columns)
                losses.append(of_rows)
            if self._trainer.compile:
                for name, stacked in kept.items():
                    torch.cat(trained[name], dim=1, out=stacked)
        return torch.stack(losses, dim=1)[: len(slots)].tolist()

    def _parts(self, stacked: Tensor) -> list[Tensor]:
        """What an update works on: all of a row's weights at once, which takes few operations or, where it is compiled
        and they cost nothing, each parameter by itself, so that no gradients have to be put together."""
        return self._layout.parts(stacked) if self._trainer.compile else [stacked]

    def _table(self, slots: Sequence[Slot], width: int) -> list[dict[str, Tensor]]:
        """The rule's coefficients for each update of the epoch: (width, 1) each."""
        tables = []
        for slot in slots:
            steps = np.arange(slot.step + 1, slot.step + slot.n_updates + 1, dtype=np.float64)
            table = self.rule.table(slot.group, _columns(slot.schedule.rows), steps)
            if self._clips:
                table["clip_norm"] = np.full(len(steps), slot.trainer.clip_norm)
            for name in slot.scalars:
                slot.scalars[name] = float(table[name][-1])
            tables.append(table)
        names = list(tables[0])
        stacked = np.stack(
            [[table[name] for name in names] for table in _filled(tables, width)]
        )  # (width, names, n_updates)
        on_device = torch.from_numpy(stacked).to(self.device, self._layout.dtype).permute(2, 1, 0).unsqueeze(-1)
        return [dict(zip(names, columns.contiguous(), strict=True)) for columns in on_device]

    def _update_in_place(
        self, trained: Parts, extra: dict[str, Tensor], x: Tensor, y: Tensor, c: dict[str, Tensor]
    ) -> tuple[Tensor, Parts]:
        """One update of every row. Returns the losses, (n,), and `trained`."""
        (w,) = trained[""]
        grads, losses = self._traced(w, extra, x, y)
        self._apply(trained, [grads], c)
        return losses, trained

    def _new_update(
        self, trained: Parts, extra: dict[str, Tensor], x: Tensor, y: Tensor, c: dict[str, Tensor]
    ) -> tuple[Tensor, Parts]:
        """The same with new tensors, to be compiled: a compiler changes what it is given by a copy at the end, which
        takes a sixth of an update."""
        trained = {name: [part.clone() for part in parts] for name, parts in trained.items()}
        grads, losses = self._gradients(self._layout.shaped(trained[""]), extra, x, y)
        self._apply(trained, grads, c)
        return losses, trained

    def _apply(self, trained: Parts, grads: list[Tensor], c: dict[str, Tensor]) -> None:
        """Changes the weights and the state by their gradients, part by part."""
        if self._clips:
            norms = torch.stack([torch.linalg.vector_norm(g, dim=1, keepdim=True) for g in grads])
            scale = (c["clip_norm"] / (torch.linalg.vector_norm(norms, dim=0) + _CLIP_EPS)).clamp(max=1.0)
            grads = [g * scale for g in grads]
        for i, (w, g) in enumerate(zip(trained[""], grads, strict=True)):
            self.rule.update(w, g, {name: parts[i] for name, parts in trained.items()}, c)

    def _flat_gradients(self, w: Tensor, extra: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients (n, P) and losses (n,) of weights (n, P). extra: stacked tensors that are not trained."""
        grads, losses = self._gradients(self._layout.views(w), extra, x, y)
        return torch.cat(grads, dim=1), losses

    def _gradients(
        self, weights: dict[str, Tensor], extra: dict[str, Tensor], x: Tensor, y: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """The same of stacked parameters by name: gradients (n, size) of each."""
        grads, losses = vmap(grad_and_value(self._loss))(weights, extra, x, y)
        return [grads[name].reshape(len(losses), -1) for name in self._layout.names], losses

    def _loss(self, weights: dict[str, Tensor], extra: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return self.loss_fn(self._forward({**weights, **extra}, x), y)

    def _forward(self, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        """Outputs of one trial with these tensors, (B, out_features)."""
        return in_precision(self._trainer.precision, lambda x: functional_call(self._masked, tensors, (x,)), x)

    @torch.no_grad()
    def evaluate(self, split: str) -> list[dict[str, float]]:
        """Loss and metrics of every row, as `Fit.evaluate` has them."""
        n = len(self.slots)
        part: TensorSplit = getattr(self.data, split)
        weights = self._layout.views(self._weights[:n])
        fixed = {name: stacked[:n] for name, stacked in self._fixed.items()}
        self._masked.eval()

        def outputs(weights: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor) -> Tensor:
            return self._forward(weights | fixed, x)

        chunks = part.x.split(max(1, _EVAL_SAMPLES // n))
        found = torch.cat([vmap(outputs, in_dims=(0, 0, None))(weights, fixed, x) for x in chunks], dim=1)
        found = in_single_precision(found)
        metrics = vmap(lambda o: measures(o, part, self.data, self.loss_fn))(found)
        columns = torch.stack([values.double() for values in metrics.values()], dim=1).tolist()
        return [dict(zip((f"{split}/{name}" for name in metrics), values, strict=True)) for values in columns]

    def forward_of(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """Outputs of a model by itself, in the precision of the trials."""
        return lambda x: in_precision(self._trainer.precision, model, x)

    @property
    def batch_size(self) -> int:
        return self._trainer.batch_size

    def weights(self, row: int) -> dict[str, Tensor]:
        """A copy of the trial's, as the model's `state_dict`."""
        fixed = {name: stacked[row].clone() for name, stacked in self._fixed.items()}
        return self._layout.state_dict(self._weights[row].clone(), fixed)

    def state_dict(self, slot: Slot) -> dict[str, Any]:
        """The trial's checkpoint, from which it also goes on alone."""
        row = self.slots.index(slot)
        moments = {name: self._layout.split(stacked[row].clone()) for name, stacked in self._state.items()}
        with reproducible(self.device):
            seed_generators(slot.trainer.seed, "train")
            random = {**random_states(), "torch": slot.random.get_state()}
        optimizer = slot.schedule.optimizer.state_dict()
        scalars = {"step": float(slot.step), **slot.scalars}
        optimizer["state"] = {
            place: {
                **{name: torch.tensor(value) for name, value in scalars.items()},
                **{name: tensors[i] for name, tensors in moments.items()},
            }
            for i, place in enumerate(self._layout.places)
            if slot.step
        }
        return {
            "kinds": kinds(self._model, slot.schedule.optimizer, slot.schedule.scheduler),
            "model": self.weights(row),
            "optimizer": optimizer,
            "random": random,
            **slot.course_state(),
        }

    def _draw_masks(self, slots: Sequence[Slot], batch_size: int, width: int) -> dict[str, Tensor]:
        """Dropout masks of every row, (width, *shape), drawn as the trial would draw them alone."""
        drawn = {}
        for name, shape in self._mask_shapes[batch_size].items():
            p = _p(self._masked, name)
            masks = [_mask(shape, p, slot.random) for slot in slots]
            drawn[f"{name}.mask"] = torch.stack(_filled(masks, width)).to(self.device, self._layout.dtype)
        return drawn

    @contextmanager
    def rehearsal(self, width: int) -> Iterator[Callable[[], None]]:
        """What updates so many copies of the model, as often as it is called, to see how long it takes."""
        x, y = (part[: self._trainer.batch_size] for part in (self.data.train.x, self.data.train.y))
        row = self._layout.row({name: tensor.detach() for name, tensor in self._model.state_dict().items()})
        extra = {name: fixed.expand(width, *fixed.shape) for name, fixed in self._layout.fixed.items()}
        for name, shape in self._mask_shapes[len(x)].items():
            extra[f"{name}.mask"] = torch.ones(width, *shape, dtype=self._layout.dtype, device=self.device)
        x, y = (part.expand(width, *part.shape) for part in (x, y))
        w, state = row.repeat(width, 1), {name: row.new_ones(width, len(row)) for name in self.rule.state}
        columns = defaultdict(lambda: row.new_ones(width, 1))
        self._masked.train()

        def update() -> None:
            with torch.no_grad():
                g, _ = self._flat_gradients(w, extra, x, y)
                self.rule.update(w, g, state, columns)

        yield update

    def _refuse_unstackable(self) -> None:
        """Raises Unpackable if two rows cannot be updated together."""
        try:
            with self.rehearsal(2) as update:
                update()
        except Exception as error:  # whatever vmap, or the model under it, raises
            raise Unpackable(f"torch.func cannot stack the model ({one_line(error, 160)})") from error


class _Layout:
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


class _Masked(nn.Module):
    """Dropout with a mask that is handed in."""

    mask: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.register_buffer("mask", torch.empty(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask if self.training else x


def _with_masks(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """A copy that takes its dropout masks as buffers."""
    model = copy.deepcopy(model)
    for name in names:
        model.set_submodule(name, _Masked(_p(model, name)))
    return model


def _p(model: nn.Module, dropout: str) -> float:
    layer = model.get_submodule(dropout)
    assert isinstance(layer, nn.Dropout | _Masked)
    return layer.p


def _rehearsed(model: nn.Module, loss_fn: LossFn, x: Tensor, y: Tensor) -> tuple[dict[str, torch.Size], set[str]]:
    """Trains a copy for one batch. Returns the shapes that reach its dropout layers, by name and in the order of
    drawing, and the names of the parameters that get a gradient. Raises Unpackable."""
    model = copy.deepcopy(model).train()
    for name, module in model.named_modules():
        if getattr(module, "track_running_stats", False):
            raise Unpackable(f"{type(module).__name__} ('{name}') keeps running statistics")
    calls: list[tuple[str, torch.Size]] = []
    for name, module in model.named_modules():
        if type(module) is nn.Dropout and module.p > 0:
            module.register_forward_pre_hook(partial(_note, calls, name))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with reproducible(x.device), torch.enable_grad():
        loss_fn(model(x), y).backward()
    if any(not torch.equal(buffer, before[name]) for name, buffer in model.named_buffers()):
        raise Unpackable("the model changes its buffers while it trains")
    shapes = dict(calls)
    if len(shapes) < len(calls):
        raise Unpackable("the model draws from one dropout layer several times")
    return shapes, {name for name, weight in model.named_parameters() if weight.grad is not None}


def _note(calls: list[tuple[str, torch.Size]], name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    calls.append((name, inputs[0].shape))


def _compiled(function: Callable[..., T]) -> Callable[..., T]:
    """Compiled once for all sizes. By default torch takes sizes, and offsets, that happen to be equal at first (a batch
    of 64 in a pack of 64) for the same one, and compiles anew when they differ."""
    compiled = torch.compile(
        function, dynamic=True, options={"guard_filter_fn": torch.compiler.keep_tensor_guards_unsafe}
    )

    def call(*arguments: Any) -> T:
        with fx_config.patch(use_duck_shape=False):  # pyright: ignore[reportAttributeAccessIssue]  # torch adds it
            return compiled(*arguments)

    return call


def _mask(shape: torch.Size, p: float, random: torch.Generator) -> Tensor:
    """As `torch.nn.functional.dropout` draws it, which draws nothing where nothing is left."""
    if p == 1:
        return torch.zeros(shape)
    return torch.empty(shape).bernoulli_(1 - p, generator=random).div_(1 - p)


def _filled(items: list[T], n: int) -> list[T]:
    """With the first repeated in rows that no trial has."""
    return items + items[:1] * (n - len(items))


def _columns(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """What the scheduler sets, (n_updates,) each; of the only parameter group."""
    first = rows[0][0]
    columns = {name: np.array([float(row[0][name]) for row in rows]) for name in first if name != "betas"}
    if "betas" in first:
        for i, name in enumerate(("beta1", "beta2")):
            columns[name] = np.array([float(row[0]["betas"][i]) for row in rows])
    return columns
