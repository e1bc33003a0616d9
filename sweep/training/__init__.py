"""How one trial trains, in torch alone: the loop, its state, its checkpoints, its evaluation.

In: a model, tensors, an optimizer and a schedule. Out: losses and metrics, epoch by epoch. Imports neither Hydra,
OmegaConf, Optuna nor MLflow.
"""
