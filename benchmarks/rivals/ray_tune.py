"""A random search with Ray Tune, two trials side by side. `python ray_tune.py TRIALS EPOCHS`

Everything stays in the working directory and on the loopback address.
"""

import os
import sys
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HOME"] = os.getcwd()  # where Ray keeps its cluster's token

import ray  # pyright: ignore[reportMissingImports]
from ray import tune  # pyright: ignore[reportMissingImports]


def objective(config: dict[str, Any]) -> None:
    from training import train

    for _, train_loss, val_loss in train(config["lr"], config["epochs"]):
        tune.report({"train_loss": train_loss, "val_loss": val_loss})


def main() -> None:
    n_trials, n_epochs = map(int, sys.argv[1:])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=os.path.abspath("session"),
    )
    tuner = tune.Tuner(
        objective,
        param_space={"lr": tune.loguniform(1e-4, 1e-1), "epochs": n_epochs},
        tune_config=tune.TuneConfig(metric="val_loss", mode="min", num_samples=n_trials, max_concurrent_trials=2),
        run_config=tune.RunConfig(storage_path=os.path.abspath("results"), verbose=0),
    )
    best = tuner.fit().get_best_result().metrics
    assert best is not None
    print(best["val_loss"])


if __name__ == "__main__":
    main()
