"""Training functions that use Lightning, for the tests."""

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sweep import Trial
from sweep.integrations.lightning import TrialCallback

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Line(lightning.LightningModule):
    """Draws for its dropout in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 8)
        self.net = nn.Sequential(self.first, nn.Dropout(0.5), nn.Linear(8, 1))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        loss = self.net(batch[0]).sub(batch[0].sum(dim=1, keepdim=True)).square().mean()
        self.log("train/loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log("val/loss", self.net(batch[0]).square().mean())

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[torch.optim.lr_scheduler.LRScheduler]]:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def train(cfg: object, trial: Trial, **settings: Any) -> dict[str, float]:
    """Three epochs of four batches, which are shuffled."""
    callback = TrialCallback()  # the current trial, which is the one that is given
    data = DataLoader(TensorDataset(torch.arange(16.0).view(8, 2) / 16), batch_size=2, shuffle=True)
    given: dict[str, Any] = {"max_epochs": 3, "accelerator": "cpu", "callbacks": [callback]} | QUIET | settings
    trainer = lightning.Trainer(**given)
    module = Line()
    trainer.fit(module, data, data, ckpt_path=callback.ckpt_path)
    return {"test/weight": module.first.weight.sum().item()}


def validates_twice(cfg: object, trial: Trial) -> dict[str, float]:
    return train(cfg, trial, val_check_interval=0.5)


def validates_every_other_epoch(cfg: object, trial: Trial) -> dict[str, float]:
    return train(cfg, trial, check_val_every_n_epoch=2, max_epochs=4)
