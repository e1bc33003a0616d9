"""How one trial trains, in plain torch: the loop, its state, its checkpoints and its evaluation.

In: a model, tensors, an optimizer and a schedule. Out: losses and metrics for each epoch. This package imports none of
Hydra, OmegaConf, Optuna and MLflow.
"""
