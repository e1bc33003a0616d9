"""Data options: each target of a `conf/data/*.yaml` returns `Samples`, in numpy; none imports torch."""

from sweep.data.samples import Samples as Samples
