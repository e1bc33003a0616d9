"""What a scheduler sets the optimizer to, step by step, read off torch's own scheduler."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CyclicLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from sweep.utils.errors import TrainingFailed

Row = list[dict[str, Any]]  # per parameter group: the values that a scheduler may change
_SCHEDULED = ("lr", "momentum", "betas")


class Schedule:
    """Runs the real scheduler on a shadow optimizer of dummy weights, an epoch ahead of the training loop.

    So the loop sets plain numbers, whatever the scheduler is, and the values of an epoch are known before it starts.
    `optimizer` is the shadow. `changing` names the hyperparameters that the scheduler may set. `interval` says whether
    the scheduler is stepped after each update or after each epoch; None leaves it to the scheduler. `shapes` are those
    of the model's weights; they matter to an optimizer that makes several parameter groups of them.
    """

    def __init__(
        self,
        make_optimizer: Callable[[Any], Optimizer],
        make_scheduler: Callable[[Optimizer], LRScheduler],
        interval: str | None,
        shapes: Iterable[Sequence[int]] = ((1, 1),),
    ) -> None:
        dummy = torch.zeros(())  # expanded, so that it takes no memory
        self.optimizer = make_optimizer([torch.nn.Parameter(dummy.expand(tuple(shape))) for shape in shapes])
        first = [dict(group) for group in self.optimizer.param_groups]  # as the optimizer itself begins
        self.scheduler = make_scheduler(self.optimizer)
        self.optimizer._opt_called = True  # pyright: ignore  # or torch warns that the optimizer was never stepped
        self.changing = _changing(self.scheduler, self.optimizer)
        names = dict.fromkeys([*_SCHEDULED, *sorted(self.changing)])
        self._keys = [[key for key in names if key in group] for group in self.optimizer.param_groups]
        self._first = first
        is_plateau = isinstance(self.scheduler, ReduceLROnPlateau)
        self._per_step = not is_plateau and (interval == "step" if interval else _counts_updates(self.scheduler))
        self._started = False
        self._changed: set[str] = set()  # of those that only a scheduler of one's own sets
        self.rows: list[Row] = []  # of the epoch in progress, one an update

    def start_epoch(self, n_updates: int) -> None:
        """Fills `rows` for the next epoch."""
        if self._per_step:
            self.rows = [self._advance() for _ in range(n_updates)]
        else:
            self.rows = [self._row()] * n_updates
        self._drop_what_never_changed()
        for i, row in enumerate(self.rows):
            for group in row:
                if not 0 <= group.get("lr", 0.0) < math.inf:
                    raise TrainingFailed(f"the scheduler sets a learning rate of {float(group['lr']):g}", i + 1)

    def end_epoch(self, value: float) -> None:
        """Tells a scheduler that is stepped per epoch that one is over, with its monitored value."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(value)
        elif not self._per_step:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        return {
            "scheduler": self.scheduler.state_dict(),
            "groups": groups,
            "started": self._started,
            "rows": self.rows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state["scheduler"])
        for group, saved in zip(self.optimizer.param_groups, state["groups"], strict=True):
            group.update(saved)
        self._started = state["started"]
        if state["rows"]:  # an earlier version may have stepped it otherwise
            self._per_step = self._started
        self.rows = state["rows"]

    def _drop_what_never_changed(self) -> None:
        """Leave out numbers that the scheduler may set but never has: the optimizer may count with them itself."""
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
        if self._started:  # one step fewer than updates: OneCycleLR refuses a step past its end
            self.scheduler.step()
        self._started = True
        return self._row()

    def _row(self) -> Row:
        groups = zip(self.optimizer.param_groups, self._keys, strict=True)
        return [{key: group[key] for key in keys} for group, keys in groups]


def _changing(scheduler: Any, optimizer: Optimizer) -> frozenset[str]:
    """Return the names of the hyperparameters that a scheduler may set: any number, for one that torch did not make."""
    kind = type(scheduler)
    if kind in (CyclicLR, OneCycleLR):
        return frozenset(_SCHEDULED if scheduler.cycle_momentum else ("lr",))
    if kind in (SequentialLR, ChainedScheduler):
        return frozenset().union(*(_changing(part, optimizer) for part in scheduler._schedulers))
    if kind.__module__.startswith("torch.optim."):
        return frozenset(("lr",))
    return frozenset(("lr", *(name for name, value in optimizer.defaults.items() if _is_number(value))))


def _counts_updates(scheduler: Any) -> bool:
    """Whether torch documents it as stepped after each batch, itself or a scheduler that it is made of."""
    parts = getattr(scheduler, "_schedulers", [])
    return isinstance(scheduler, OneCycleLR | CyclicLR) or any(map(_counts_updates, parts))


def _is_number(value: Any) -> bool:
    """Whether it is a number, or several as `betas` is."""
    values = value if isinstance(value, list | tuple) else [value]
    return bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
