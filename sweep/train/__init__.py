"""Training itself: torch only. Nothing here knows of Hydra, Optuna or MLflow."""
