"""One study from beginning to end: begun or resumed, run by its workers, shown, recorded.

In: the settings and the space of a command. Out: the study's folder, its storage, and a parent run in MLflow.
"""
