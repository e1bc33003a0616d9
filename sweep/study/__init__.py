"""Studies: the only door to Optuna."""
