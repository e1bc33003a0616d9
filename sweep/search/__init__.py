"""What to try next: the space that options declare, samplers, pruners, and the first trials.

In: a composed config and the settings of `hydra.sweeper`. Out: for each trial number, a configuration.
"""
