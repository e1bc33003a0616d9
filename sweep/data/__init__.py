"""Data sets: the targets of `conf/data/*.yaml`. Each returns `Samples` of numpy arrays. None imports torch."""

from sweep.data.samples import Samples as Samples
