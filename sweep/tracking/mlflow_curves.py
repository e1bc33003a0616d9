"""Reads the curves of a study's trial in MLflow, for a machine that does not have the trial's files."""

import numpy as np
from mlflow.tracking import MlflowClient

from sweep.tracking.mlflow_client import FAILURES
from sweep.tracking.mlflow_runs import PARENT_TAG, RESTARTED_TAG, UID_TAG
from sweep.tracking.store import Store
from sweep.utils.curve import Curve
from sweep.utils.errors import ConfigError, one_line
from sweep.utils.passwords import without_password


def curves_of_trial(store: Store, study: str, number: int) -> list[dict[str, Curve]]:
    """Return the curves of each run of a trial by name, in the order of its seeds; an empty list if there is no run.

    A run that ended since its machine was lost does not count, nor does an attempt before the last.

    Args:
        store: the tracking store.
        study: the uid of the study's record, which its run has as a tag.
        number: the trial's number.

    Raises:
        ConfigError: the store cannot be read.
    """
    assert store.uri is not None
    try:
        client = MlflowClient(store.uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        parents = client.search_runs(experiments, f"tags.`{UID_TAG}` = '{study}'", max_results=1)
        if not parents:
            return []
        own = f"tags.`{PARENT_TAG}` = '{parents[0].info.run_id}' and tags.`trial` = '{number}'"
        latest = {
            int(run.data.tags.get("replicate", 0)): run
            for run in reversed(client.search_runs(experiments, own))
            if RESTARTED_TAG not in run.data.tags
        }
        return [
            {name: _curve(client, latest[place].info.run_id, name) for name in latest[place].data.metrics}
            for place in sorted(latest)
        ]
    except FAILURES as error:
        problem = f"{without_password(store.uri)} cannot be read ({one_line(error, 160)})"
        raise ConfigError("tracking.uri", problem) from error


def _curve(client: MlflowClient, run_id: str, name: str) -> Curve:
    by_step = {point.step: point.value for point in client.get_metric_history(run_id, name)}
    steps = sorted(by_step)
    return Curve(np.array(steps, np.int64), np.array([by_step[step] for step in steps]))
