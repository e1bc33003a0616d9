"""Many trials in one pass: `Pack.train_epoch` trains a stack of weights, each row a trial of its own.

Rows differ in numbers only: weights, data order, dropout masks and hyperparameters. A trial takes a row at the start of
an epoch and leaves it at the end of one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap

from sweep.training.checkpoint import check_kinds, kinds, random_states
from sweep.training.evaluate import LossFn, in_single_precision, measures
from sweep.training.packed.parameters import (
    FlatParameters,
    MaskLike,
    Unpackable,
    draw_mask,
    dropout_p,
    rehearsed,
    with_masks,
)
from sweep.training.packed.rules import Rule
from sweep.training.packed.update import Update
from sweep.training.runtime import in_precision, reproducible, seed_generators
from sweep.training.schedule import Row, Schedule
from sweep.training.state import TrainState
from sweep.training.tensors import TensorData, TensorSplit, epoch_order, stacked_batches
from sweep.training.trial import Trial, UnrecordedTrial
from sweep.utils.errors import ConfigError, Diverged, one_line
from sweep.utils.seeds import derive_seed

if TYPE_CHECKING:
    from sweep.config.nodes import Trainer

_EVAL_SAMPLES = {"cpu": 2**13}  # of all rows together, at a time: what stays in a core's cache
_EVAL_SAMPLES_DEFAULT = 2**16
_BLOCK = {"cpu": 64}  # rows updated together; the tensors of more of them do not stay in a core's cache
_FEWEST_ROWS = 2  # a compiled update takes no fewer


T = TypeVar("T")


class PackMember(TrainState):
    """One trial in a pack."""

    def __init__(
        self,
        *,
        schedule: Schedule,
        trainer: "Trainer",
        n_train: int,
        weights: Mapping[str, Tensor],
        rule: Rule,
        step_points: int | None = None,
    ) -> None:
        """weights: the initial ones, as `state_dict` of the model. step_points: as in `TrainState`."""
        super().__init__(schedule, trainer, n_train, step_points)
        self.weights = weights  # until it has its row
        self.moments: Mapping[str, Mapping[int, Tensor]] = {}  # likewise, by place among the model's parameters
        self.scalars = dict(rule.scalars)
        self.table: dict[str, np.ndarray] = {}  # the rule's coefficients for the epoch, (n_updates,) each
        device = next(iter(weights.values())).device
        draws_on = device if device.type == "cuda" else "cpu"  # as torch's own dropout does
        self.random = torch.Generator(draws_on).manual_seed(
            derive_seed(trainer.seed, "train")
        )  # of dropout, as if alone
        self.trial: Trial = UnrecordedTrial()

    def load_state_dict(self, state: dict[str, Any], rule: Rule) -> None:
        """All that a checkpoint has of the trial, for the row that it is to take."""
        self.schedule.load_state_dict(state["schedule"])
        self.load_course_state(state)
        self._load_random(state["random"])
        self.weights = state["model"]
        kept = state["optimizer"]["state"]  # by place; Adagrad keeps some of weights that are not trained, too
        if kept:
            self.moments = {
                name: {place: of_one[name] for place, of_one in kept.items() if of_one.get(name) is not None}
                for name in rule.state
            }
            self.scalars = rule.loaded(next(iter(kept.values())))

    def _load_random(self, states: Mapping[str, Any]) -> None:
        if self.random.device.type != "cuda":
            self.random.set_state(states["torch"])
        elif "cuda" in states:  # not in a checkpoint that was saved without a GPU
            self.random.set_state(states["cuda"][self.random.device.index])

    def random_states(self) -> dict[str, Any]:
        """The states of all generators, as a checkpoint of the trial alone has them."""
        with reproducible(self.random.device):
            seed_generators(self.trainer.seed, "train")
            states = random_states()
        if self.random.device.type == "cuda":
            states["cuda"][self.random.device.index] = self.random.get_state()
        else:
            states["torch"] = self.random.get_state()
        return states

    @property
    def group(self) -> dict[str, Any]:
        """The hyperparameters, and the optimizer's state as far as it is numbers."""
        return {**self.schedule.optimizer.param_groups[0], **self.scalars}


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
        self.members: list[PackMember] = []  # row by row
        self._model = model
        self._clips = trainer.clip_norm is not None
        n_train, batch_size = len(data.train.x), trainer.batch_size
        self._masks: dict[int, dict[str, MaskLike]] = {}  # by size of the batch; of the last one, too
        used: set[str] = set()
        for size in {batch_size, n_train % batch_size or batch_size}:
            x, y = data.train.x[:size], data.train.y[:size]
            self._masks[size], used = rehearsed(model, loss_fn, trainer.precision, x, y)
        self._layout = FlatParameters(model, used)
        self._masked = with_masks(model, self._masks[batch_size])
        size = self._layout.size
        self._most_rows = 0  # so far: a pack that was empty for a moment has as many again
        self._weights = torch.empty(0, size, dtype=self._layout.dtype, device=self.device)
        self._state = {name: torch.empty_like(self._weights) for name in rule.state}
        self._fixed = {name: fixed.new_empty(0, *fixed.shape) for name, fixed in self._layout.fixed.items()}
        self._update = Update(self._masked, self._layout, loss_fn, rule, trainer)
        self._refuse_unstackable()

    def admit(self, member: PackMember) -> None:
        """Gives a trial the next free row."""
        row = len(self.members)
        n_rows = row + self._update.is_compiled  # of which one is behind the last, which may be alone in its block
        if n_rows >= len(self._weights):
            self._resize(max(_FEWEST_ROWS, 2 * n_rows, self._most_rows))
        self.members.append(member)
        weights, member.weights = member.weights, {}
        self._weights[row] = self._layout.row(weights)
        for name, fixed in self._fixed.items():
            fixed[row] = weights[name]
        for name, stacked in self._state.items():
            if member.moments.get(name):
                stacked[row] = torch.cat([member.moments[name][place].flatten() for place in self._layout.places])
            else:
                stacked[row] = self.rule.initial(name, member.group)
        member.moments = {}

    def release(self, member: PackMember) -> None:
        """Frees the trial's row, if it has one; the last one moves there."""
        if member not in self.members:
            return
        row, last = self.members.index(member), len(self.members) - 1
        if row < last:
            for stacked in (self._weights, *self._state.values(), *self._fixed.values()):
                stacked[row] = stacked[last]
            self.members[row] = self.members[last]
        self.members.pop()
        if not self.members:
            self._resize(0)

    def _resize(self, n_rows: int) -> None:
        def resized(stacked: Tensor) -> Tensor:
            made = stacked.new_zeros(n_rows, *stacked.shape[1:])
            made[: len(self.members)] = stacked[: len(self.members)]
            return made

        weights = resized(self._weights)  # all of them, or none where memory is short
        state = {name: resized(stacked) for name, stacked in self._state.items()}
        fixed = {name: resized(stacked) for name, stacked in self._fixed.items()}
        self._weights, self._state, self._fixed = weights, state, fixed
        self._most_rows = max(self._most_rows, n_rows)

    def train_epoch(self) -> dict[PackMember, Exception | None]:
        """One epoch of every trial, which reports it. Returns those that have come to their end.

        With what ended them: None for one that is complete, Diverged, or what its report raised.
        """
        ended: dict[PackMember, Exception | None] = {}
        for member in [*self.members]:
            try:
                if member.is_over:  # it was when it was saved
                    ended[member] = None
                else:
                    member.start_epoch()
                    member.table = self._table_of(member)
            except Exception as error:  # whatever a scheduler raises
                ended[member] = error
            if member in ended:
                self.release(member)
        losses = self._train()  # (n, n_updates)
        for member, values in zip(self.members, losses, strict=True):
            try:
                member.record(values)
            except Diverged as diverged:
                ended[member] = diverged
            member.log_steps(member.trial)
        metrics_of = self.evaluate("val") if self.members else []
        for row, (member, val) in enumerate(zip(self.members, metrics_of, strict=True)):
            if member in ended:
                continue
            try:
                metrics = member.finish_epoch(val, lambda row=row: self.weights(row))
                member.trial.report(member.epoch, metrics)
            except Exception as error:
                ended[member] = error
            else:
                if member.is_over:
                    ended[member] = None
        return ended

    def _train(self) -> list[list[float]]:
        """The updates of an epoch. Returns the loss of each, by row."""
        size = _BLOCK.get(self.device.type, max(1, len(self.members)))
        self._masked.train()
        losses = []
        for first in range(0, len(self.members), size):
            losses += self._train_block(first, self.members[first : first + size])
        return losses

    def _train_block(self, first: int, members: list[PackMember]) -> list[list[float]]:
        """The same for these members, in the rows from `first` on."""
        width = (
            max(len(members), 2) if self._update.is_compiled else len(members)
        )  # a width of 1 would be compiled anew
        rows = slice(first, first + width)
        orders = [epoch_order(s.trainer.seed, s.epoch + 1, len(self.data.train.x)) for s in members]
        order = torch.stack(_filled(orders, width)).to(self.device)  # (width, n_train)
        kept = {"": self._weights[rows], **{name: stacked[rows] for name, stacked in self._state.items()}}
        fixed = {name: stacked[rows].clone() for name, stacked in self._fixed.items()}
        trained = {name: self._update.parts(stacked) for name, stacked in kept.items()}
        losses = []
        with torch.no_grad():
            batches = stacked_batches(self.data.train, order, self._trainer.batch_size)
            for columns, (x, y) in zip(self._table(members, width), batches, strict=True):
                masks = self._draw_masks(members, x.shape[1], width)
                of_rows, trained = self._update(trained, fixed | masks, x, y, columns)
                losses.append(of_rows)
            if self._update.is_compiled:
                for name, stacked in kept.items():
                    torch.cat(trained[name], dim=1, out=stacked)
        return torch.stack(losses, dim=1)[: len(members)].tolist()

    def _table_of(self, member: PackMember) -> dict[str, np.ndarray]:
        """The rule's coefficients for each update of the trial's epoch: (n_updates,) each."""
        steps = np.arange(member.step + 1, member.step + member.n_updates + 1, dtype=np.float64)
        table = self.rule.table(member.group, _columns(member.schedule.rows), steps)
        if self._clips:
            table["clip_norm"] = np.full(len(steps), member.trainer.clip_norm)
        for name in member.scalars:
            member.scalars[name] = float(table[name][-1])
        return table

    def _table(self, members: Sequence[PackMember], width: int) -> list[dict[str, Tensor]]:
        """The same of several trials, update by update: (width, 1) each."""
        tables = [member.table for member in members]
        names = list(tables[0])
        stacked = np.stack(
            [[table[name] for name in names] for table in _filled(tables, width)]
        )  # (width, names, n_updates)
        on_device = torch.from_numpy(stacked).to(self.device, self._layout.dtype).permute(2, 1, 0).unsqueeze(-1)
        return [dict(zip(names, columns.contiguous(), strict=True)) for columns in on_device]

    @torch.no_grad()
    def evaluate(self, split: str) -> list[dict[str, float]]:
        """Loss and metrics of every row, as `TrainingLoop.evaluate` has them."""
        n = len(self.members)
        part: TensorSplit = getattr(self.data, split)
        weights = self._layout.views(self._weights[:n])
        fixed = {name: stacked[:n] for name, stacked in self._fixed.items()}
        self._masked.eval()

        def outputs(weights: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor) -> Tensor:
            return self._update.outputs(weights | fixed, x)

        chunks = part.x.split(max(1, _EVAL_SAMPLES.get(self.device.type, _EVAL_SAMPLES_DEFAULT) // n))
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

    def load_state_dict(self, member: PackMember, state: dict[str, Any]) -> None:
        """Load into the member a checkpoint that was saved between two epochs, by a pack or by a trial alone.

        Raises ConfigError when it is of another model, optimizer or scheduler.
        """
        check_kinds(state, self._kinds(member))
        own, saved = ({name: list(w.shape) for name, w in s.items()} for s in (member.weights, state["model"]))
        if saved != own:
            changed = next(name for name in own | saved if own.get(name) != saved.get(name))
            problem = f"{changed} has the shape {saved.get(changed)}, not {own.get(changed)}"
            raise ConfigError("resume", f"the checkpoint is of another model than the config ({problem})")
        member.load_state_dict(state, self.rule)

    def _kinds(self, member: PackMember) -> dict[str, str]:
        return kinds(self._model, member.schedule.optimizer, member.schedule.scheduler)

    def state_dict(self, member: PackMember) -> dict[str, Any]:
        """The trial's checkpoint, from which it also goes on alone."""
        row = self.members.index(member)
        moments = {name: self._layout.split(stacked[row].clone()) for name, stacked in self._state.items()}
        optimizer = member.schedule.optimizer.state_dict()
        scalars, names = self.rule.kept(member.scalars)
        scalars = {"step": float(member.step), **scalars}
        optimizer["state"] = {
            place: {
                **{name: torch.tensor(value) for name, value in scalars.items()},
                **{name: moments[name][i] for name in names},
            }
            for i, place in enumerate(self._layout.places)
            if member.step
        }
        return {
            "kinds": self._kinds(member),
            "model": self.weights(row),
            "optimizer": optimizer,
            "random": member.random_states(),
            **member.course_state(),
        }

    def _draw_masks(self, members: Sequence[PackMember], batch_size: int, width: int) -> dict[str, Tensor]:
        """Dropout masks of every row, (width, *shape), drawn as the trial would draw them alone."""
        drawn = {}
        for name, like in self._masks[batch_size].items():
            p = dropout_p(self._masked, name)
            masks = [draw_mask(like, p, member.random) for member in members]
            drawn[f"{name}.mask"] = torch.stack(_filled(masks, width)).to(self.device, self._layout.dtype)
        return drawn

    @contextmanager
    def rehearsal(self, width: int) -> Iterator[Callable[[], None]]:
        """What updates so many copies of the model, as often as it is called, to see how long it takes."""
        x, y = (part[: self._trainer.batch_size] for part in (self.data.train.x, self.data.train.y))
        row = self._layout.row({name: tensor.detach() for name, tensor in self._model.state_dict().items()})
        extra = {name: fixed.expand(width, *fixed.shape) for name, fixed in self._layout.fixed.items()}
        for name, like in self._masks[len(x)].items():
            extra[f"{name}.mask"] = torch.ones(width, *like.shape, dtype=self._layout.dtype, device=self.device)
        x, y = (part.expand(width, *part.shape) for part in (x, y))
        w, state = row.repeat(width, 1), {name: row.new_ones(width, len(row)) for name in self.rule.state}
        columns = defaultdict(lambda: row.new_ones(width, 1))
        self._masked.train()

        def update() -> None:
            with torch.no_grad():
                g, _ = self._update.gradients(w, extra, x, y)
                self.rule.update(w, g, state, columns)

        yield update

    def _refuse_unstackable(self) -> None:
        """Raises Unpackable if two rows cannot be updated together."""
        try:
            with self.rehearsal(2) as update:
                update()
        except Exception as error:  # whatever vmap, or the model under it, raises
            raise Unpackable(f"torch.func cannot stack the model ({one_line(error, 160)})") from error


def _filled(items: list[T], n: int) -> list[T]:
    """With the first repeated in rows that no trial has."""
    return items + items[:1] * (n - len(items))


def _columns(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """What the scheduler sets, (n_updates,) each; of the only parameter group."""
    first = rows[0][0]
    columns = {name: np.array([float(row[0][name]) for row in rows]) for name in first if name != "betas"}
    if "betas" in first:  # the only ones that are several numbers, in the optimizers that there are rules for
        for i, name in enumerate(("beta1", "beta2")):
            columns[name] = np.array([float(row[0]["betas"][i]) for row in rows])
    return columns
