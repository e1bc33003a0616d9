"""Small real data sets that come with scikit-learn and need no download."""

import numpy as np

from sweep.data.samples import Samples


def digits() -> Samples:
    """Load 1,797 handwritten digits of 8 x 8 pixels in 10 classes; x: (N, 1, 8, 8)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Samples(
        name="digits",
        task="classification",
        x=bunch.images[:, None],  # pyright: ignore[reportAttributeAccessIssue]
        y=bunch.target,  # pyright: ignore[reportAttributeAccessIssue]
        classes=tuple(str(i) for i in range(10)),
        source="scikit-learn",
    )


def diabetes() -> Samples:
    """Load 442 patients with 10 measurements each; the target is the disease's progression in a year (25 to 346)."""
    from sklearn.datasets import load_diabetes

    return _table("diabetes", "regression", load_diabetes(scaled=False))


def breast_cancer() -> Samples:
    """Load 569 tumours with 30 measurements each, in 2 classes."""
    from sklearn.datasets import load_breast_cancer

    return _table("breast_cancer", "classification", load_breast_cancer())


def _table(name, task, bunch) -> Samples:
    return Samples(
        name=name,
        task=task,
        x=bunch.data,
        y=bunch.target,
        features=tuple(map(str, bunch.feature_names)),
        classes=tuple(map(str, np.atleast_1d(bunch.target_names))) if task == "classification" else (),
        source="scikit-learn",
    )
