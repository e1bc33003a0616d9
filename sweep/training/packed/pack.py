"""Many trials in one pass: `Pack.train_epoch` trains a matrix of weights in which each row is one trial.

Rows differ only in numbers: weights, data order, dropout masks and hyperparameters. A trial takes a row before an epoch
starts and leaves it after an epoch ends. The rows in use are always the first ones, in the order of `Pack.members`.

Shapes: n is the number of members, P the number of trained weights of one model. Weights and each tensor of the
optimizer's state are (n, P), with spare rows at the end.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from sweep.tasks import TensorTask
from sweep.training.checkpoint import check_kinds, kinds
from sweep.training.evaluate import evaluate, evaluate_each
from sweep.training.packed.grouped_rules import GroupedRules
from sweep.training.packed.member import PackMember
from sweep.training.packed.parameters import (
    FlatParameters,
    MaskLike,
    Unpackable,
    draw_mask,
    dropout_p,
    rehearsed,
    with_masks,
)
from sweep.training.packed.update import Update
from sweep.training.runtime import in_precision
from sweep.training.schedule import Row
from sweep.training.tensors import (
    TensorData,
    TensorSplit,
    epoch_order,
    in_single_precision,
    largest_batch,
    stacked_batches,
)
from sweep.utils.errors import ConfigError, Diverged, one_line

if TYPE_CHECKING:
    from sweep.config.nodes import Trainer

_EVAL_SAMPLES = {"cpu": 2**13}  # evaluated at a time, summed over all rows: as many as fit in a core's cache
_EVAL_SAMPLES_DEFAULT = 2**16
_BLOCK = {"cpu": 64}  # rows updated together; the tensors of more rows do not fit in a core's cache
_FEWEST_ROWS = 2  # a compiled update needs at least two

# Of torch's implementations of attention, the only one that vmap can stack. The others run row by row, with a warning.
_attention_that_stacks = partial(sdpa_kernel, SDPBackend.MATH)


T = TypeVar("T")


class Pack:
    """Trials of one structure that train side by side."""

    def __init__(
        self,
        *,
        model: nn.Module,
        task: TensorTask,
        data: TensorData,
        trainer: "Trainer",
        rules: GroupedRules,
    ) -> None:
        """Make an empty pack.

        Args:
            model: any model of the trials' structure; its weights do not matter.
            task: the loss and the metrics.
            data: the splits, which all trials share.
            trainer: the settings of any of the trials; only those that they share matter.
            rules: of the optimizer, which all trials share.

        Raises:
            Unpackable: the model cannot be stacked.
        """
        self.task, self.data, self.rules = task, data, rules
        self.device, self._trainer = data.train.x.device, trainer
        self.members: list[PackMember] = []  # in the order of the rows
        self._model = model
        self._clips = [name for name in ("clip_norm", "clip_value") if getattr(trainer, name) is not None]
        n_train, batch_size = len(data.train.x), trainer.batch_size
        self._masks: dict[int, dict[str, MaskLike]] = {}  # by batch size, including that of a smaller last batch
        used: set[str] = set()
        for size in {batch_size, n_train % batch_size or batch_size}:
            self._masks[size], used = rehearsed(model, task.loss_of, trainer.precision, data.train.first(size))
        self._layout = FlatParameters(model, used, rules.names)
        self._masked = with_masks(model, self._masks[batch_size])
        size = self._layout.size
        self._most_rows = 0  # so far; a pack that was empty in between is made this large again
        self._weights = torch.empty(0, size, dtype=self._layout.dtype, device=self.device)
        self._state = {name: torch.empty_like(self._weights) for name in rules.state}
        self._fixed = {name: fixed.new_empty(0, *fixed.shape) for name, fixed in self._layout.fixed.items()}
        in_use = [rules.rules[number] for number in self._layout.groups]
        self._update = Update(self._masked, self._layout, task.loss_of, in_use, trainer)
        self._refuse_unstackable()

    def admit(self, member: PackMember) -> None:
        """Copy a trial into the next free row."""
        row = len(self.members)
        n_rows = row + self._update.is_compiled  # a compiled update of a block with one member needs a spare row
        if n_rows >= len(self._weights):
            self._resize(max(_FEWEST_ROWS, 2 * n_rows, self._most_rows))
        self.members.append(member)
        weights, member.weights = member.weights, {}
        self._weights[row] = self._layout.row(weights)
        for name, fixed in self._fixed.items():
            fixed[row] = weights[name]
        for name, stacked in self._state.items():
            moments = member.moments.get(name, {})
            for i, part in enumerate(self._layout.by_group(stacked[row : row + 1])):
                places = self._layout.places_of(i)
                if moments.keys() >= {*places}:
                    part[0] = torch.cat([moments[place].flatten() for place in places])
                else:  # it has not begun, or the rule of this group does not have it
                    rule = self.rules.rules[self._layout.groups[i]]
                    part[0] = rule.initial(name, member.schedule.optimizer.defaults)  # torch ignores a group's own
        member.moments = {}

    def release(self, member: PackMember) -> None:
        """Free the trial's row, if it has one. The last row moves there, so that the rows in use stay contiguous."""
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

        weights = resized(self._weights)  # assign nothing before everything is allocated: memory may run out
        state = {name: resized(stacked) for name, stacked in self._state.items()}
        fixed = {name: resized(stacked) for name, stacked in self._fixed.items()}
        self._weights, self._state, self._fixed = weights, state, fixed
        self._most_rows = max(self._most_rows, n_rows)

    def train_epoch(self) -> dict[PackMember, Exception | None]:
        """Train every member for one epoch, and report it to the members' trials in the order of the rows.

        Return the members that have ended, each with the error that ended it: None if it is complete, Diverged, or
        what its schedule or its report raised. A member that ended keeps its row until `release`, unless it ended
        before the epoch.
        """
        ended = self.advance()
        report(self.members, ended)
        return ended

    def advance(self) -> dict[PackMember, Exception | None]:
        """Train every member for one epoch, without its report. Return the members that have ended by an error.

        A member whose training was over before the epoch is among them, with None.
        """
        ended: dict[PackMember, Exception | None] = {}
        for member in [*self.members]:
            try:
                if member.is_over:  # its checkpoint was of the last epoch
                    ended[member] = None
                else:
                    member.start_epoch()
                    member.tables = self._tables_of(member)
            except Exception as error:  # a scheduler may raise anything
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
                n = len(member.losses)
                counts = self.data.update_weights(member.trainer, member.step - n, n)
                metrics = member.epoch_metrics(val, counts)
                member.finish_epoch(metrics, lambda row=row: self.weights(row))
                member.metrics = metrics
            except Exception as error:
                ended[member] = error
        return ended

    @_attention_that_stacks()
    def _train(self) -> list[list[float]]:
        """Train all rows for an epoch, block by block. Return the losses, one list of n_updates for each row."""
        size = _BLOCK.get(self.device.type, max(1, len(self.members)))
        self._masked.train()
        losses = []
        for first in range(0, len(self.members), size):
            losses += self._train_block(first, self.members[first : first + size])
        return losses

    def _train_block(self, first: int, members: list[PackMember]) -> list[list[float]]:
        """Train these members, in the rows from `first` on, for an epoch. Return their losses as `_train` does.

        If there is one member and the update is compiled, it trains together with the row after it, whose result is
        meaningless: torch would compile a width of 1 once more.
        """
        width = max(len(members), 2) if self._update.is_compiled else len(members)
        rows = slice(first, first + width)
        orders = [epoch_order(s.trainer.seed, s.epoch + 1, len(self.data.train.x)) for s in members]
        order = torch.stack(_filled(orders, width)).to(self.device)  # (width, n_train)
        kept = {"": self._weights[rows], **{name: stacked[rows] for name, stacked in self._state.items()}}
        fixed = {name: stacked[rows].clone() for name, stacked in self._fixed.items()}
        trained = {name: self._update.parts(stacked) for name, stacked in kept.items()}
        losses = []
        with torch.no_grad():
            batches = stacked_batches(self.data.train, order, self._trainer.batch_size)
            for columns, batch in zip(self._table(members, width), batches, strict=True):
                masks = self._draw_masks(members, batch[0].shape[1], width)
                of_rows, trained = self._update(trained, fixed | masks, batch, columns)
                losses.append(of_rows)
            if self._update.is_compiled:
                for name, stacked in kept.items():
                    torch.cat(trained[name], dim=1, out=stacked)
        return torch.stack(losses, dim=1)[: len(members)].tolist()

    def _tables_of(self, member: PackMember) -> list[dict[str, np.ndarray]]:
        """Return the coefficients for each update of the member's epoch, (n_updates,) each, of each group in use.

        This also moves the member's `scalars` to the end of the epoch.
        """
        steps = np.arange(member.step + 1, member.step + member.n_updates + 1, dtype=np.float64)
        rows = [member.schedule.scaled(row) for row in member.schedule.rows]
        tables = [
            self.rules.rules[number].table(member.group(number), _columns(rows, number), steps)
            for number in self._layout.groups
        ]
        for name in self._clips:
            tables[0][name] = np.full(len(steps), getattr(member.trainer, name))
        for number, table in zip(self._layout.groups, tables, strict=True):
            member.scalars[number] = {name: float(table[name][-1]) for name in member.scalars[number]}
        return tables

    def _table(self, members: Sequence[PackMember], width: int) -> list[list[dict[str, Tensor]]]:
        """Return the coefficients of each update: a dict for each group in use, (width, 1) each, on the device."""
        tables = [member.tables for member in members]
        names = [(i, name) for i, table in enumerate(tables[0]) for name in table]
        stacked = np.stack(
            [[of_groups[i][name] for i, name in names] for of_groups in _filled(tables, width)]
        )  # (width, names, n_updates)
        on_device = torch.from_numpy(stacked).to(self.device, self._layout.dtype).permute(2, 1, 0).unsqueeze(-1)
        return [_grouped(names, columns.contiguous()) for columns in on_device]

    @torch.no_grad()
    @_attention_that_stacks()
    def evaluate(self, split: str) -> list[dict[str, float]]:
        """Return loss and metrics of each member, named as by `TrainingLoop.evaluate`."""
        part: TensorSplit = getattr(self.data, split)
        size, n = largest_batch(self.task, part.y) // len(part.y), len(self.members)  # rows whose outputs are kept
        self._masked.eval()
        if size == 0:
            metrics = [evaluate(self._forward(row), part, self.task) for row in range(n)]
        else:
            blocks = [range(n)[first : first + size] for first in range(0, n, size)]
            metrics = [of_row for rows in blocks for of_row in self._evaluate_rows(rows, part)]
        return [{f"{split}/{name}": value for name, value in of_member.items()} for of_member in metrics]

    def _forward(self, row: int) -> Callable[[Tensor], Tensor]:
        """Return the function that applies the model of one row."""
        tensors = {name: stacked[row] for name, stacked in self._layout.views(self._weights).items()}
        tensors |= {name: stacked[row] for name, stacked in self._fixed.items()}
        return lambda x: self._update.outputs(tensors, x)

    def _evaluate_rows(self, rows: range, part: TensorSplit) -> list[dict[str, float]]:
        """Return loss and metrics of the members in these rows."""
        n, places = len(rows), slice(rows.start, rows.stop)
        weights = self._layout.views(self._weights[places])
        fixed = {name: stacked[places] for name, stacked in self._fixed.items()}

        def outputs(weights: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor) -> Tensor:
            return self._update.outputs(weights | fixed, x)

        chunks = part.x.split(max(1, _EVAL_SAMPLES.get(self.device.type, _EVAL_SAMPLES_DEFAULT) // n))
        found = torch.cat([vmap(outputs, in_dims=(0, 0, None))(weights, fixed, x) for x in chunks], dim=1)
        return evaluate_each(in_single_precision(found), part, self.task)

    def forward_of(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return the function that applies one (unstacked) model in the trials' precision."""
        return lambda x: in_precision(self._trainer.precision, model, x)

    @property
    def batch_size(self) -> int:
        return self._trainer.batch_size

    def weights(self, row: int) -> dict[str, Tensor]:
        """Return a copy of one row's weights, as the model's `state_dict`."""
        fixed = {name: stacked[row].clone() for name, stacked in self._fixed.items()}
        return self._layout.state_dict(self._weights[row].clone(), fixed)

    def load_state_dict(self, member: PackMember, state: dict[str, Any]) -> None:
        """Load a checkpoint into a member that has no row yet.

        The checkpoint must have been saved between two epochs, by a pack or by a sequential trial. Raises ConfigError
        if it has another model, optimizer or scheduler.
        """
        check_kinds(state, self._kinds(member))
        own, saved = ({name: list(w.shape) for name, w in s.items()} for s in (member.weights, state["model"]))
        if saved != own:
            changed = next(name for name in own | saved if own.get(name) != saved.get(name))
            problem = f"{changed} has the shape {saved.get(changed)}, not {own.get(changed)}"
            raise ConfigError("resume", f"the checkpoint has another model than the config ({problem})")
        member.load_state_dict(state, self.rules)

    def _kinds(self, member: PackMember) -> dict[str, str]:
        return kinds(self._model, member.schedule.optimizer, member.schedule.scheduler)

    def state_dict(self, member: PackMember) -> dict[str, Any]:
        """Return the member's checkpoint. It has the format of a sequential trial's, so either can resume from it."""
        row = self.members.index(member)
        moments = {name: self._layout.split(stacked[row].clone()) for name, stacked in self._state.items()}
        optimizer = member.schedule.optimizer.state_dict()
        kept = [self.rules.rules[number].kept(member.scalars[number]) for number in self._layout.groups]
        optimizer["state"] = {
            place: {
                "step": torch.tensor(float(member.step)),
                **{name: torch.tensor(value) for name, value in kept[group][0].items()},
                **{name: moments[name][i] for name in kept[group][1]},
            }
            for i, (place, group) in enumerate(zip(self._layout.places, self._layout.group_of, strict=True))
            if member.step
        }
        return {
            "kinds": self._kinds(member),
            "model": self.weights(row),
            "optimizer": optimizer,
            "random": member.random_states(),
            **member.progress_state(),
        }

    def _draw_masks(self, members: Sequence[PackMember], batch_size: int, width: int) -> dict[str, Tensor]:
        """Draw the dropout masks of every row, (width, *shape): those that the trial would draw sequentially."""
        drawn = {}
        for name, like in self._masks[batch_size].items():
            p = dropout_p(self._masked, name)
            masks = [draw_mask(like, p, member.random) for member in members]
            drawn[f"{name}.mask"] = torch.stack(_filled(masks, width)).to(self.device, self._layout.dtype)
        return drawn

    @contextmanager
    def rehearsal(self, width: int) -> Iterator[Callable[[], None]]:
        """Hold the memory of `width` copies of the model, and yield a function that updates them once, for timing."""
        batch = self.data.train.first(self._trainer.batch_size)
        row = self._layout.row({name: tensor.detach() for name, tensor in self._model.state_dict().items()})
        extra = {name: fixed.expand(width, *fixed.shape) for name, fixed in self._layout.fixed.items()}
        for name, like in self._masks[len(batch[0])].items():
            extra[f"{name}.mask"] = torch.ones(width, *like.shape, dtype=self._layout.dtype, device=self.device)
        batch = tuple(part.expand(width, *part.shape) for part in batch)
        w = row.repeat(width, 1)
        trained = {"": [w], **{name: [row.new_ones(width, len(row))] for name in self.rules.state}}
        columns = [defaultdict(lambda: row.new_ones(width, 1))] * len(self._layout.groups)
        self._masked.train()

        def update() -> None:
            with torch.no_grad():
                g, _ = self._update.gradients(w, extra, *batch)
                self._update.step(trained, g, columns)

        with _attention_that_stacks():
            yield update

    def _refuse_unstackable(self) -> None:
        """Raise Unpackable if two rows cannot be updated together."""
        try:
            with self.rehearsal(2) as update:
                update()
        except Exception as error:  # vmap, or the model under it, may raise anything
            raise Unpackable(f"torch.func cannot stack the model ({one_line(error, 160)})") from error


def report(members: Iterable[PackMember], ended: dict[PackMember, Exception | None]) -> None:
    """Report the epoch that `Pack.advance` trained to the members' trials, in the order given.

    Members in `ended` are left out. Those that end now are added, with what ended them: None if they are complete.
    """
    for member in members:
        if member in ended:
            continue
        try:
            member.trial.report(member.epoch, member.metrics)
        except Exception as error:
            ended[member] = error
        else:
            if member.is_over:
                ended[member] = None


def _filled(items: list[T], n: int) -> list[T]:
    """Return n items: the given ones, and copies of the first for rows without a trial."""
    return items + items[:1] * (n - len(items))


def _grouped(names: Sequence[tuple[int, str]], columns: Tensor) -> list[dict[str, Tensor]]:
    """Return a dict for each group. names: the index of the group, from 0 on, and the name of each column."""
    found: list[dict[str, Tensor]] = [{} for _ in range(names[-1][0] + 1)]
    for (i, name), column in zip(names, columns, strict=True):
        found[i][name] = column
    return found


def _columns(rows: Sequence[Row], group: int) -> dict[str, np.ndarray]:
    """Return the values that the scheduler sets, (n_updates,) each, for one parameter group."""
    first = rows[0][group]
    columns = {name: np.array([float(row[group][name]) for row in rows]) for name in first if name != "betas"}
    if "betas" in first:  # in optimizers that have a rule, only betas is a tuple
        for i, name in enumerate(("beta1", "beta2")):
            columns[name] = np.array([float(row[group]["betas"][i]) for row in rows])
    return columns
