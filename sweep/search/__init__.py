"""What to try next: the search space that options declare, samplers, pruners, and the initial trials.

In: a composed config and the settings of `hydra.sweeper`. Out: a configuration for each trial number.
"""
