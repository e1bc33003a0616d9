"""Studies on a real Slurm: their workers are warned, cancelled and killed, and each trial is trained once."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaigns.hunted import GPUS
from campaigns.kill_study import trials_of
from engines.faults import PATIENT, ClusterStudy, cancel, end_time, kill_command, kill_node, warn
from engines.slurm import SlurmCluster, Unavailable
from optuna.trial import TrialState
from processes import make_store
from waiting import wait_until

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A Slurm with two nodes, of two cores and two GPUs each. Without it, its tests are skipped, with the reason."""
    try:
        with SlurmCluster(tmp_path_factory.mktemp("slurm"), n_gpus=2) as cluster:
            yield cluster
    except Unavailable as reason:
        pytest.skip(f"Slurm cannot be started: {reason}")


def test_each_task_of_a_job_is_a_worker_and_ctrl_c_does_not_wait_for_pending_jobs(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    cluster.run("scontrol", "update", "nodename=node-b", "state=drain", "reason=test")
    study = ClusterStudy(cluster, make_store(tmp_path), 3, epoch_s=0.3)
    try:
        tasks = ("hydra.launcher.tasks_per_node=2", "hydra.sweeper.resources={cpus:1,gpus:1}")
        with study.start("hydra.sweeper.n_jobs=4", *tasks) as command:
            study.wait_for_workers(2)
            assert sorted(cluster.jobs().values()) == ["PENDING", "RUNNING"]
            owners = {t.user_attrs["worker"] for t in trials_of(tmp_path)}
            assert len(owners) == 2
            assert sorted(gpus.read_text() for gpus in tmp_path.glob(f"**/{GPUS}")) == ["0", "1"]
            command.send_signal(signal.SIGINT)
            _, err = command.communicate(timeout=60)
            assert (command.returncode, err) == (130, "")
        wait_until(lambda: sorted(cluster.jobs().values()) == ["CANCELLED", "COMPLETED"])
    finally:
        cluster.run("scontrol", "update", "nodename=node-b", "state=resume")
    assert {t.state for t in trials_of(tmp_path)} == {TrialState.WAITING}
    study.start(launcher=["hydra/launcher=basic"])
    study.finish()
    assert study.problems() == []


def test_a_worker_that_is_warned_or_cancelled_saves_its_trial_and_another_is_launched(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    study = ClusterStudy(cluster, make_store(tmp_path), 6, epoch_s=0.4)
    study.start("hydra.sweeper.n_jobs=2")
    study.wait_for_workers(2)
    first, second = study.running()
    warn(study, first)
    cancel(study, second)
    err = study.finish()
    assert "workers were lost (stopped by SIG" in err  # the other signal is counted, or in a line of its own
    assert all(line.endswith("launching them again") for line in err.splitlines()), err
    assert study.problems() == []
    assert {t.user_attrs.get("retries", 0) for t in trials_of(tmp_path)} == {0}  # each saved its state


def test_a_study_survives_a_time_limit_a_dead_node_and_a_dead_command(cluster: SlurmCluster, tmp_path: Path) -> None:
    study = ClusterStudy(cluster, make_store(tmp_path), 20, epoch_s=0.4)
    study.start(*PATIENT, "hydra.launcher.max_num_timeout=1")
    study.wait_for_workers(2)
    first, second = study.running()
    end_time(study, first)
    kill_node(study, second)
    kill_command(study, first)
    wait_until(lambda: "Restarts=1" in cluster.run("scontrol", "show", "job", first), study.command, what="its limit")
    assert "TIMEOUT" not in cluster.jobs().values()  # it saved its trial and put itself back into the queue
    study.finish()
    assert study.problems() == []
