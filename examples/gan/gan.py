"""A generator learns to put points on a ring, and a discriminator to tell them from real ones."""

import torch
from torch import nn

import sweep


def network(width, n_out):
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n_out))


def ring(n):
    angle = 2 * torch.pi * torch.rand(n)
    return torch.stack([angle.cos(), angle.sin()], dim=1) + 0.05 * torch.randn(n, 2)


def distance(a, b):
    """Energy distance of two sets of points, 0 for the same distribution (Székely and Rizzo 2013)."""
    return (2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()


def train(cfg, trial):
    generator, discriminator = network(cfg.width, 2), network(cfg.width, 1)
    of_g = sweep.build(cfg.generator, generator.parameters())
    of_d = sweep.build(cfg.discriminator, discriminator.parameters())
    parts = {"generator": generator, "discriminator": discriminator, "of_g": of_g, "of_d": of_d}
    if (state := trial.restore()) is not None:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    loss, n = nn.functional.softplus, cfg.batch_size
    for epoch in range(trial.epoch + 1, cfg.trainer.epochs + 1):
        for _ in range(cfg.updates):
            points = generator(torch.randn(n, 2))
            d_loss = loss(-discriminator(ring(n))).mean() + loss(discriminator(points.detach())).mean()
            of_d.zero_grad()
            d_loss.backward()
            of_d.step()
            g_loss = loss(-discriminator(points)).mean()
            of_g.zero_grad()
            g_loss.backward()
            of_g.step()
        made = generator(torch.randn(1000, 2)).detach()
        trial.report(epoch, {"val/distance": distance(made, ring(1000)), "g/loss": g_loss, "d/loss": d_loss})
        if trial.should_save:
            trial.save(epoch, {name: part.state_dict() for name, part in parts.items()})
    made = generator(torch.randn(5000, 2)).detach()
    torch.save(made, trial.folder / "points.pt")
    return {"test/distance": distance(made, ring(5000))}
