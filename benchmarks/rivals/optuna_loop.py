"""A search with only Optuna and torch: no config, no record. `python optuna_loop.py TRIALS EPOCHS`"""

import sys

import optuna
from training import train

N_TRIALS, N_EPOCHS = map(int, sys.argv[1:])


def objective(trial: optuna.Trial) -> float:
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    return min(val_loss for _, _, val_loss in train(lr, N_EPOCHS))


study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
study.optimize(objective, n_trials=N_TRIALS)
print(study.best_value)
