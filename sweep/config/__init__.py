"""What a config may say, and how it is composed.

In: YAML files and a command line. Out: a checked `Config`, or one line that names the key (`ConfigError`). Imports no
torch, Optuna or MLflow, so that a mistake shows within a second.
"""
