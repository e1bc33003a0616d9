"""Execute a study's trials: the queue of trials, the workers that claim them, and the pool that launches the workers.

In: configurations. Out: trials that are complete, pruned or failed in the study's storage. If a worker dies, another
one reclaims its trial and continues from the last checkpoint.
"""
