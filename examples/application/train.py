import hydra
import torch
from hydra.utils import instantiate

import sweep


@hydra.main(config_path="conf", config_name="train", execution_whitelist=["torch.nn.*"])
def main(cfg):
    torch.manual_seed(cfg.seed)
    x = 4 * torch.rand(cfg.data.n, 1) - 2
    y = torch.sin(2 * x) + 0.1 * torch.randn(cfg.data.n, 1)
    x_val, y_val = x[::4], y[::4]
    model, loss_of = instantiate(cfg.model), torch.nn.functional.mse_loss
    optimizer = torch.optim.SGD(model.parameters(), lr=cfg.lr, momentum=cfg.momentum)
    trial, best = sweep.current_trial(), float("inf")
    if (state := trial.restore()) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        best = state["best"]
    for epoch in range(trial.epoch + 1, cfg.epochs + 1):
        loss = loss_of(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        val = loss_of(model(x_val), y_val).item()
        best = min(best, val)
        trial.report(epoch, {"val/loss": val, "train/loss": loss})
        if trial.should_save:
            trial.save(epoch, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "best": best})
    return best


if __name__ == "__main__":
    main()
