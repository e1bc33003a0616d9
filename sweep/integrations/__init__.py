"""Callbacks that connect the trainers of other libraries to a trial (docs/functions.md).

Each module needs its library, which is an extra of this package. `sweep` itself imports none of them.
"""
