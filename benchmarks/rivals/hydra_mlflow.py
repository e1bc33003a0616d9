"""A search as it is usually written with Hydra's Optuna sweeper and MLflow: one call to MLflow an epoch.

`python hydra_mlflow.py --multirun hydra/sweeper=optuna hydra.sweeper.n_trials=64 'lr=tag(log, interval(1e-4, 1e-1))'`
"""

from dataclasses import dataclass

import hydra
import mlflow
from hydra.core.config_store import ConfigStore
from training import train


@dataclass
class Config:
    lr: float = 1e-3
    epochs: int = 10
    tracking_uri: str = "sqlite:///mlflow.db"


ConfigStore.instance().store(name="config", node=Config)


@hydra.main(config_path=None, config_name="config")
def main(cfg: Config) -> float:
    mlflow.set_tracking_uri(cfg.tracking_uri)
    mlflow.set_experiment("rival")
    best = float("inf")
    with mlflow.start_run():
        mlflow.log_params({"lr": cfg.lr, "epochs": cfg.epochs})
        for epoch, train_loss, val_loss in train(cfg.lr, cfg.epochs):
            mlflow.log_metrics({"train/loss": train_loss, "val/loss": val_loss, "lr": cfg.lr}, step=epoch)
            best = min(best, val_loss)
    return best


if __name__ == "__main__":
    main()
