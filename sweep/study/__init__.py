"""One study from start to end: begin or resume it, have its workers run it, show and record what they do.

In: the settings and the search space of a command. Out: the study's folder, its storage, and a parent run in MLflow.
"""
