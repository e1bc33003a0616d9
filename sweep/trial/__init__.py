"""One trial, from its config to its outcome.

In: a checked `Config`. Out: an `Outcome`, a run folder, and a run in MLflow. `build` is the only module that calls
Hydra's `instantiate`.
"""
