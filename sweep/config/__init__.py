"""What a config may say, and how it is composed.

In: YAML files and a command line. Out: a checked `Config`, or a `ConfigError` whose one line names the key. This
package imports no torch, Optuna or MLflow, so that a mistake shows within a second.
"""
