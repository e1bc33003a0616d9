"""Lightning trains a classifier of points in two interleaved spirals."""

import logging
import warnings

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sweep.integrations.lightning import TrialCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


def spirals(n, seed):
    draw = torch.Generator().manual_seed(seed)
    arm, radius = torch.arange(n) % 2, torch.rand(n, generator=draw)
    angle = 6 * radius + torch.pi * arm
    x = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return TensorDataset(x + 0.03 * torch.randn(n, 2, generator=draw), arm)


class Spirals(lightning.LightningModule):
    def __init__(self, width, lr):
        super().__init__()
        self.lr = lr
        layers = [nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)]
        self.net = nn.Sequential(*layers)

    def training_step(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch):
        self.log("val/accuracy", self.accuracy(batch))

    def test_step(self, batch):
        self.log("test/accuracy", self.accuracy(batch))

    def accuracy(self, batch):
        x, y = batch
        return (self.net(x).argmax(dim=1) == y).float().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def train(cfg, trial):
    callback = TrialCallback(trial)
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    trainer = lightning.Trainer(max_epochs=cfg.trainer.epochs, callbacks=[callback], **quiet)
    train, val, test = (DataLoader(spirals(1000, seed), batch_size=64, shuffle=seed == 0) for seed in range(3))
    module = Spirals(cfg.width, cfg.lr)
    trainer.fit(module, train, val, ckpt_path=callback.ckpt_path)
    return trainer.test(module, test, verbose=False)[0]
