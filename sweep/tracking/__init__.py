"""What a run leaves behind: its folder, its journal, and its copy in MLflow.

In: a config, and metrics as they come. Out: an append-only journal, written first; MLflow follows from a process of its
own. The only folder that imports MLflow.
"""
