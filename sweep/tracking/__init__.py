"""The record of a run: its folder, its journal, and its copy in MLflow.

Metrics are appended to a journal first. A separate upload process then copies the journal to MLflow. No other folder
imports MLflow.
"""
