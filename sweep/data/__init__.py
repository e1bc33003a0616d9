"""Data sets: the targets of `conf/data/*.yaml`. Each returns `Samples` of numpy arrays. None imports torch.

A data option of your own may return `Datasets` instead: torch datasets.
"""

from sweep.data.datasets import Datasets as Datasets
from sweep.data.samples import Samples as Samples
