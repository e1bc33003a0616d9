"""The values that a scheduler sets in the optimizer at each step, taken from torch's own scheduler."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CyclicLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from sweep.config.optimizer_node import LR_SCALE
from sweep.training.torch_internals import allow_scheduler_first, parts_of
from sweep.utils.errors import TrainingFailed

Row = list[dict[str, Any]]  # per parameter group: the values that a scheduler may change
_SCHEDULED = ("lr", "momentum", "betas")


class Schedule:
    """Runs the real scheduler on a shadow optimizer with dummy weights, an epoch ahead of the training loop.

    The loop then sets plain numbers for any scheduler, and an epoch's values are known before it starts.

    Attributes:
        optimizer: the shadow.
        scheduler: torch's scheduler, attached to the shadow.
        changing: names of the hyperparameters that the scheduler may set.
        rows: the values of the epoch in progress, one row an update, before `scaled`; empty between epochs.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        make_scheduler: Callable[[Optimizer], LRScheduler],
        interval: str | None,
    ) -> None:
        """Make the scheduler of the shadow optimizer.

        Args:
            optimizer: the shadow: an optimizer of dummy weights, with the parameter groups of the real one.
            make_scheduler: makes a scheduler of the optimizer.
            interval: whether the scheduler is stepped after each "step" or each "epoch"; None chooses by its class.
        """
        self.optimizer = optimizer
        first = [dict(group) for group in self.optimizer.param_groups]  # before the scheduler changes anything
        self.scheduler = make_scheduler(self.optimizer)
        allow_scheduler_first(self.optimizer)
        self.changing = _changing(self.scheduler, self.optimizer)
        names = dict.fromkeys([*_SCHEDULED, *sorted(self.changing)])
        self._keys = [[key for key in names if key in group] for group in self.optimizer.param_groups]
        self._first = first
        scales = [group.get(LR_SCALE, 1.0) for group in self.optimizer.param_groups]
        self._scales = None if set(scales) == {1.0} else scales
        is_plateau = isinstance(self.scheduler, ReduceLROnPlateau)
        self._per_step = not is_plateau and (interval == "step" if interval else _counts_updates(self.scheduler))
        self._started = False
        self._changed: set[str] = set()  # names outside _SCHEDULED that the scheduler has changed so far
        self.rows: list[Row] = []

    def start_epoch(self, n_updates: int, begun: Sequence[int] = ()) -> None:
        """Fill `rows` for the updates up to the next validation.

        Args:
            n_updates: their number.
            begun: the numbers, from 0, of those that begin another epoch.

        Raises:
            TrainingFailed: a learning rate is negative or not finite.
        """
        if self._per_step:
            self.rows = [self._advance() for _ in range(n_updates)]
        else:
            self.rows = []
            for start, end in pairwise([0, *begun, n_updates]):
                if start > 0 and not isinstance(self.scheduler, ReduceLROnPlateau):
                    self.scheduler.step()
                self.rows += [self._row()] * (end - start)
        self._drop_what_never_changed()
        for i, row in enumerate(self.rows):
            for group in row:
                if not 0 <= group.get("lr", 0.0) < math.inf:
                    raise TrainingFailed(f"the scheduler sets a learning rate of {float(group['lr']):g}", i + 1)

    def end_epoch(self, value: float, ends: bool = True) -> None:
        """Step a scheduler that is stepped once an epoch, and ReduceLROnPlateau after each validation.

        Args:
            value: the monitored value, for ReduceLROnPlateau.
            ends: False if an epoch goes on after the validation.
        """
        self.rows = []
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(value)
        elif ends and not self._per_step:
            self.scheduler.step()

    def scaled(self, row: Row) -> Row:
        """Return what the optimizer's groups get: the row, with each learning rate times the group's `lr_scale`.

        So a group's rate stays in proportion, also to a schedule that sets absolute rates.
        """
        if self._scales is None:
            return row
        return [{**of, "lr": of["lr"] * scale} for of, scale in zip(row, self._scales, strict=True)]

    def overwritten(self) -> set[str]:
        """Return the names of the values that the scheduler has set for its start, except for the learning rate."""
        pairs = [*zip(self._first, self.optimizer.param_groups, strict=True)]
        return {key for first, now in pairs for key in first if key in _SCHEDULED[1:] and first[key] != now[key]}

    def state_dict(self) -> dict[str, Any]:
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        return {
            "scheduler": self.scheduler.state_dict(),
            "groups": groups,
            "started": self._started,
            "per_step": self._per_step,
            "rows": self.rows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state["scheduler"])
        for group, saved in zip(self.optimizer.param_groups, state["groups"], strict=True):
            group.update(saved)
        self._started = state["started"]
        # Keep the interval of the checkpoint: an earlier version may have chosen the other one. The first ones did not
        # save it; there, rows tell it.
        self._per_step = state.get("per_step", self._started if state["rows"] else self._per_step)
        self.rows = state["rows"]

    def _drop_what_never_changed(self) -> None:
        """Remove from `rows` the numbers that the scheduler has never changed: the optimizer may update them itself."""
        for i, (keys, first) in enumerate(zip(self._keys, self._first, strict=True)):
            own = [key for key in keys if key not in _SCHEDULED]
            if not own:
                continue
            changed = {key for key in own if any(row[i][key] != first[key] for row in self.rows)}
            self._changed |= changed
            kept = [key for key in keys if key in _SCHEDULED or key in self._changed]
            for row in {id(row): row for row in self.rows}.values():
                row[i] = {key: row[i][key] for key in kept}

    def _advance(self) -> Row:
        if self._started:  # n updates take n - 1 steps: OneCycleLR refuses a step past its end
            self.scheduler.step()
        self._started = True
        return self._row()

    def _row(self) -> Row:
        groups = zip(self.optimizer.param_groups, self._keys, strict=True)
        return [{key: group[key] for key in keys} for group, keys in groups]


def _changing(scheduler: Any, optimizer: Optimizer) -> frozenset[str]:
    """Return the names of the hyperparameters that a scheduler may set. One from outside torch may set any number."""
    kind = type(scheduler)
    if kind in (CyclicLR, OneCycleLR):
        return frozenset(_SCHEDULED if scheduler.cycle_momentum else ("lr",))
    if kind in (SequentialLR, ChainedScheduler):
        return frozenset().union(*(_changing(part, optimizer) for part in parts_of(scheduler)))
    if kind.__module__.startswith("torch.optim."):
        return frozenset(("lr",))
    return frozenset(("lr", *(name for name, value in optimizer.defaults.items() if _is_number(value))))


def _counts_updates(scheduler: Any) -> bool:
    """Return whether torch documents that the scheduler, or one that it is made of, is stepped after each batch."""
    parts = parts_of(scheduler)
    return isinstance(scheduler, OneCycleLR | CyclicLR) or any(map(_counts_updates, parts))


def _is_number(value: Any) -> bool:
    """Return whether the value is a number or, like `betas`, several numbers. A bool is not a number."""
    values = value if isinstance(value, list | tuple) else [value]
    return bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
