"""A trial in a pack, or about to join one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sweep.training.checkpoint import random_states
from sweep.training.packed.grouped_rules import GroupedRules
from sweep.training.runtime import reproducible, seed_generators
from sweep.training.schedule import Schedule
from sweep.training.state import TrainState
from sweep.training.trial import Trial, UnrecordedTrial
from sweep.utils.seeds import derive_seed

if TYPE_CHECKING:
    from sweep.config.nodes import Trainer


class PackMember(TrainState):
    """One trial in a pack, or about to join one.

    Before it has a row, its tensors are in `weights` and `moments`. `Pack.admit` copies them to the row.
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        trainer: "Trainer",
        n_train: int,
        weights: Mapping[str, Tensor],
        rules: GroupedRules,
        direction: str = "minimize",
        step_points: int | None = None,
    ) -> None:
        """Start a trial from its initial weights.

        Args:
            schedule: gives the hyperparameters of each update.
            trainer: the settings of the training.
            n_train: training samples in an epoch.
            weights: the initial weights, as the model's `state_dict`.
            rules: of the optimizer.
            direction: as in `TrainState`.
            step_points: as in `TrainState`.
        """
        super().__init__(schedule, trainer, n_train, direction, step_points)
        self.weights = weights  # empty once it has a row
        self.moments: Mapping[str, Mapping[int, Tensor]] = {}  # likewise; by name, then by the parameter's index
        self.scalars = rules.scalars  # for each parameter group
        self.tables: list[dict[str, np.ndarray]] = []  # likewise, the coefficients for the epoch, (n_updates,) each
        self.metrics: dict[str, float] = {}  # of the epoch that was trained last
        device = next(iter(weights.values())).device
        draws_on = device if device.type == "cuda" else "cpu"  # where torch's own dropout draws
        # Draws the dropout masks. The seed is that of the global generator when the trial trains sequentially.
        self.random = torch.Generator(draws_on).manual_seed(derive_seed(trainer.seed, "train"))
        self.trial: Trial = UnrecordedTrial()

    def load_state_dict(self, state: dict[str, Any], rules: GroupedRules) -> None:
        """Load a checkpoint into a member that has no row yet."""
        self.schedule.load_state_dict(state["schedule"])
        self.load_progress(state)
        self._load_random(state["random"])
        self.weights = state["model"]
        kept = state["optimizer"]["state"]  # by the parameter's index; Adagrad has state for untrained weights too
        if kept:
            self.moments = {
                name: {place: of_one[name] for place, of_one in kept.items() if of_one.get(name) is not None}
                for name in rules.state
            }
            self.scalars = rules.loaded(kept)

    def _load_random(self, states: Mapping[str, Any]) -> None:
        if self.random.device.type != "cuda":
            self.random.set_state(states["torch"])
        elif "cuda" in states:  # missing if the checkpoint was saved without a GPU
            self.random.set_state(states["cuda"][self.random.device.index])

    def random_states(self) -> dict[str, Any]:
        """Return the states of all generators, as the checkpoint of a sequential trial has them."""
        with reproducible(self.random.device):
            seed_generators(self.trainer.seed, "train")
            states = random_states()
        if self.random.device.type == "cuda":
            states["cuda"][self.random.device.index] = self.random.get_state()
        else:
            states["torch"] = self.random.get_state()
        return states

    def group(self, number: int) -> dict[str, Any]:
        """Return the hyperparameters of a parameter group, and the plain numbers of the optimizer's state.

        number: of the group, from 0.
        """
        return {**self.schedule.optimizer.param_groups[number], **self.scalars[number]}
