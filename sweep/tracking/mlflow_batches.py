"""Batches of metrics, params and tags, within MLflow's limits."""

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from mlflow.entities import Metric, Param, RunTag

_MAX_ENTITIES = 1000  # in one log_batch; this and the next are MLflow's own limits
_MAX_OF_A_KIND = {"metrics": 1000, "params": 100, "tags": 100}
_MAX_BYTES = 900_000  # a server accepts 1,000,000


def batches(metrics: list[Metric], params: list[Param], tags: list[RunTag]) -> Iterator[dict[str, list[Any]]]:
    """Yield keyword arguments of `log_batch`, in as few batches as MLflow's limits allow."""
    batch: dict[str, list[Any]] = {"params": [], "tags": [], "metrics": []}
    n_entities = n_bytes = 0
    for kind, entity in chain(
        (("params", param) for param in params),
        (("tags", tag) for tag in tags),
        (("metrics", metric) for metric in metrics),
    ):
        size = len(json.dumps([entity.key, entity.value])) + 100  # with its time, step and punctuation
        if len(batch[kind]) == _MAX_OF_A_KIND[kind] or n_entities == _MAX_ENTITIES or n_bytes + size > _MAX_BYTES:
            yield batch
            batch = {"params": [], "tags": [], "metrics": []}
            n_entities = n_bytes = 0
        batch[kind].append(entity)
        n_entities, n_bytes = n_entities + 1, n_bytes + size
    if n_entities:
        yield batch
