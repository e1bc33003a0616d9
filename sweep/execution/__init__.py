"""Who runs what: the queue of trials, the workers that take from it, and the pool that launches them.

In: configurations. Out: trials that are complete, pruned or failed in the study's storage. A dead worker's trial is
reclaimed and continues from its last checkpoint.
"""
