"""sweep/tracking/mlflow_client.py, upload_process.py and sync.py against real stores: all of a run arrives, once."""

import json
import math
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from conftest import SMALL, kill_a_trial, the_run
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient
from omegaconf import OmegaConf
from processes import go_at_once
from stores import Server, Study, points, recorded, rows, run_of, runs_of
from waiting import wait_until

from sweep import ConfigError, Diverged, Outcome, compose, load_model, run_trial, sync
from sweep.tracking import journal
from sweep.tracking.folders import Busy, RunFolder
from sweep.tracking.journal import Journal
from sweep.tracking.mlflow_batches import batches
from sweep.tracking.mlflow_client import Uploader
from sweep.tracking.store import Store
from sweep.tracking.upload_process import UploadProcess

pytestmark = pytest.mark.process  # commands, servers, a browser

Trial = Callable[..., Outcome]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def uploader(server: Server) -> Uploader:
    return Uploader(Store(server.uri, None))


@pytest.fixture(scope="module")
def sent(server: Server, upload_process: UploadProcess, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A small trial that went to the server while it ran."""
    outputs = tmp_path_factory.mktemp("sent")
    overrides = [f"tracking.uri={server.uri}", f"output_dir={outputs}", "experiment_name=sent", *SMALL]
    overrides += ["tracking.register=sine", "seed=5"]
    return run_trial(compose(overrides), upload_process=upload_process)


def test_every_point_of_every_curve_arrives_once(sent: Outcome, server: Server) -> None:
    run = run_of(sent.folder, server.uri)
    assert sent.uploaded
    assert sent.tracking_uri == server.uri
    in_store = points(run, server.database)
    assert in_store == recorded(sent.folder)
    epochs, steps = [1, 2, 3, 4], list(range(1, 21))
    for name in ("train/loss", "val/loss", "val/mse", "lr"):
        assert [step for step, _ in in_store[name]] == epochs, name
        np.testing.assert_array_equal([value for _, value in in_store[name]], sent.history[name].values)
    for name in ("step/loss", "step/lr"):
        assert [step for step, _ in in_store[name]] == steps, name
    assert run.data.metrics["best/epoch"] == sent.best_epoch
    assert run.data.metrics["test/excess"] == sent.metrics["test/excess"]


def test_a_run_tells_what_it_was_made_of(sent: Outcome, server: Server) -> None:
    run = run_of(sent.folder, server.uri)
    assert (run.info.run_name, run.info.status) == ("adam-cyclic-mlp-noisy_sine-s5", "FINISHED")
    assert run.info.start_time is not None
    assert run.info.end_time is not None
    assert run.info.start_time <= run.info.end_time
    choices = {"optimizer": "adam", "scheduler": "cyclic", "model": "mlp", "data": "noisy_sine"}
    assert choices.items() <= run.data.tags.items()
    overrides = OmegaConf.to_object(OmegaConf.load(sent.folder / "overrides.yaml"))
    assert isinstance(overrides, list)
    assert overrides[-1] == "seed=5"
    assert run.data.tags["command"] == shlex.join(["python", "-m", "sweep.run", *overrides])
    assert {"version.torch", "version.sweep", "python", "host", "mlflow.user"} < run.data.tags.keys()
    expected = {"seed": "5", "trainer.epochs": "4", "trainer.batch_size": "16", "data.n": "96"}
    expected |= {"model.widths": "[8]", "scheduler.max_lr": "0.01", "optimizer.betas": "[0.9, 0.999]"}
    assert expected.items() <= run.data.params.items()
    assert not any(key.startswith(("tracking.", "output_dir", "hydra")) for key in run.data.params)
    assert run.inputs is not None
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "noisy_sine"
    assert json.loads(dataset.dataset.profile or "")["n_train"] == 68
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("mlflow.data.context", "training")]


def test_a_server_is_not_asked_again_where_the_files_of_a_new_run_go(
    server: Server, uploader: Uploader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study of a thousand short trials sends a thousand requests less."""
    study, asked, get_run = Study(tmp_path, "asked"), list[str](), MlflowClient.get_run
    for number in range(2):
        run = study.trial(number)
        study.end(run, artifacts=["config.yaml"])
        if number == 1:
            monkeypatch.setattr(MlflowClient, "get_run", lambda self, key: asked.append(key) or get_run(self, key))
        assert uploader.push(run)
        (file,) = MlflowClient(server.uri).list_artifacts(run_of(run.path, server.uri).info.run_id)
        assert file.path == "config.yaml"
    assert asked == [run_of(study.folder.path, server.uri).info.run_id], "only whether the study is still there"


def test_the_artifacts_are_the_files_of_the_run_folder(sent: Outcome, server: Server, tmp_path: Path) -> None:
    client, run = MlflowClient(server.uri), run_of(sent.folder, server.uri)
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    files = {"config.yaml", "overrides.yaml", "best.pt", "predictions.parquet", "curves.png"}
    assert names - {"uncommitted.diff"} == {*files, "model"}
    for name in names - {"model"}:
        copied = Path(client.download_artifacts(run.info.run_id, name, str(tmp_path)))
        assert copied.read_bytes() == (sent.folder / name).read_bytes(), name
    assert (sent.folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_model_answers_from_its_run_and_from_the_registry(
    sent: Outcome, server: Server, uploader: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(sent.folder, server.uri)
    x = np.linspace(-1, 1, 5)[:, None]
    own = load_model(sent.folder).predict(x)
    frame = pd.DataFrame(x, columns=["x"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    for _ in range(2):
        for uri in (f"runs:/{run.info.run_id}/model", "models:/sine/1"):
            np.testing.assert_array_equal(mlflow.pyfunc.load_model(uri).predict(frame), own)
        RunFolder(sent.folder).sync_state.unlink()  # everything is sent again
        assert uploader.push(RunFolder(sent.folder))
    (version,) = MlflowClient(server.uri).search_model_versions("name = 'sine'")
    assert (version.version, version.run_id) == ("1", run.info.run_id)
    elsewhere = {"output_dir": sent.folder / "empty", "tracking_uri": server.uri}
    np.testing.assert_array_equal(load_model(run.info.run_id, **elsewhere).predict(x), own)
    with pytest.raises(ConfigError, match="cannot be read from"):
        load_model("0" * 32, **elsewhere)


def test_sending_again_changes_nothing(sent: Outcome, server: Server, uploader: Uploader) -> None:
    before, run = rows(server.database), RunFolder(sent.folder)
    assert before["metrics"]
    assert uploader.push(run)
    assert rows(server.database) == before
    run.sync_state.unlink()  # as after a crash between sending and writing it down
    assert uploader.push(run)
    assert rows(server.database) == before
    run.sync_state.write_text("{ torn")
    assert uploader.push(run)
    assert rows(server.database) == before
    assert sync.main([str(sent.folder), "--uri", server.uri]) == 0
    assert rows(server.database) == before


def of_experiment(run: RunFolder, name: str) -> bytes:
    """The run's journal, as if it had been recorded in another experiment."""
    copy = run.path / "copy.jsonl"
    with Journal(copy) as made:
        for record, _ in journal.read(run.journal):
            made._append({**record, "experiment": name} if record["kind"] == "start" else record)
    data = copy.read_bytes()
    copy.unlink()
    return data


def test_a_run_that_the_store_has_lost_is_sent_again(
    sent: Outcome, server: Server, uploader: Uploader, tmp_path: Path
) -> None:
    """As when the store is put back from an older copy."""
    source, copy = RunFolder(sent.folder), RunFolder(tmp_path)
    copy.journal.write_bytes(of_experiment(source, "lost"))
    states = json.loads(source.sync_state.read_text())
    copy.sync_state.write_text(json.dumps({store: state | {"run_id": "0" * 32} for store, state in states.items()}))
    assert uploader.push(copy)
    assert points(run_of(tmp_path, server.uri), server.database) == recorded(sent.folder)


def test_a_journal_is_sent_as_far_as_it_goes_and_then_the_rest(
    sent: Outcome, server: Server, uploader: Uploader, tmp_path: Path
) -> None:
    source, copy = RunFolder(sent.folder), RunFolder(tmp_path)
    whole = of_experiment(source, "in pieces")
    half = whole.index(b"\n", len(whole) // 2) - 2  # inside a line
    for n_bytes in (0, 40, half, half, len(whole) - 1):
        copy.journal.write_bytes(whole[:n_bytes])
        assert not uploader.push(copy) or n_bytes == 0
    copy.journal.write_bytes(whole)
    assert uploader.push(copy)
    assert points(run_of(tmp_path, server.uri), server.database) == recorded(sent.folder)


def test_more_than_mlflow_takes_at_once_is_sent_in_parts(server: Server, uploader: Uploader, tmp_path: Path) -> None:
    n, run = 2500, RunFolder(tmp_path)
    params = {f"model.param_{i}": "x" * 10_000 for i in range(150)}
    made = Journal(run.journal)
    start(made, "many", params=params, tags={f"long {i}": "y" * 10_000 for i in range(150)})
    made.metrics(range(1, n + 1), {"step/loss": [i / n for i in range(n)], "step/lr": [0.1] * n})
    for epoch in range(1, 300):
        made.metrics([epoch], {"val/loss": [1 / epoch]})
    made.close()
    assert uploader.push(run)
    in_store = run_of(tmp_path, server.uri)
    assert points(in_store, server.database) == recorded(tmp_path)
    assert len(in_store.data.params) == 150
    assert [in_store.data.tags[f"long {i}"][:3] for i in range(150)] == ["yyy"] * 150


@given(
    n_metrics=st.integers(0, 2500),
    params=st.lists(st.integers(0, 6000), max_size=250),
    tags=st.lists(st.integers(0, 8000), max_size=250),
)
def test_portions_are_within_the_limits_that_mlflow_documents(
    n_metrics: int, params: list[int], tags: list[int]
) -> None:
    """Also those that its own server of today lets pass."""
    entities: list[Any] = [Metric("step/loss", 0.1, 1_800_000_000_000, step) for step in range(n_metrics)]
    entities += [Param(f"p{i}", "é" * length) for i, length in enumerate(params)]  # six bytes each in a request
    entities += [RunTag(f"t{i}", "é" * length) for i, length in enumerate(tags)]
    n = [n_metrics, n_metrics + len(params)]
    read_chunks = [
        [chunk[kind] for kind in ("metrics", "params", "tags")]
        for chunk in batches(entities[: n[0]], entities[n[0] : n[1]], entities[n[1] :])
    ]
    assert [entity for kind in range(3) for chunk in read_chunks for entity in chunk[kind]] == entities
    for chunk in read_chunks:
        assert 0 < sum(map(len, chunk)) <= 1000
        assert [len(kind) <= limit for kind, limit in zip(chunk, (1000, 100, 100), strict=True)] == [True] * 3
        assert len(json.dumps([dict(entity) for kind in chunk for entity in kind])) < 1_000_000
    assert len(read_chunks) <= 3 + n_metrics // 1000 + len(params) // 20 + len(tags) // 15


def start(made: Journal, experiment: str, **fields: Any) -> None:
    """The first record of a trial that was never run."""
    dataset = {"name": "none", "digest": "0", "source": {"uri": "generated"}, "profile": {}}
    common = {"uid": f"uid of {experiment}", "name": experiment, "experiment": experiment, "params": {}, "tags": {}}
    made.event("start", **(common | {"output_dir": ".", "store": None, "dataset": dataset} | fields))


def test_values_that_are_not_finite_never_reach_the_store(server: Server, uploader: Uploader, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    made = Journal(run.journal)
    start(made, "not finite")
    made.metrics([1, 2, 3, 4], {"step/loss": [0.5, math.inf, -math.inf, math.nan], "step/lr": [0.1] * 4})
    made.event("end", status="FAILED", steps=[0], values={"test/loss": [math.nan]}, tags={"diverged": "true"})
    made.close()
    assert uploader.push(run)
    in_store = run_of(tmp_path, server.uri)
    assert points(in_store, server.database) == {"step/loss": [(1, 0.5)], "step/lr": [(s, 0.1) for s in range(1, 5)]}
    assert in_store.info.status == "FAILED"


def test_a_diverged_trial_is_failed_tagged_and_keeps_its_curves(
    server: Server, small_trial: Trial, tmp_path: Path
) -> None:
    explosive = ("optimizer=sgd", "scheduler=constant", "optimizer.lr=5", "experiment_name=diverged")
    with pytest.raises(Diverged) as caught:
        small_trial(*explosive, "tracking=mlflow", f"tracking.uri={server.uri}")
    run = run_of(the_run(tmp_path), server.uri)
    assert run.info.status == "FAILED"
    tags = {"diverged": "true", "diverged.step": str(caught.value.step), "diverged.lr": "5.0"}
    assert tags.items() <= run.data.tags.items()
    curves = points(run, server.database)
    assert [step for step, _ in curves["step/loss"]] == list(range(1, caught.value.step))
    assert all(math.isfinite(value) for curve in curves.values() for _, value in curve)


def test_a_config_error_leaves_no_run(server: Server, small_trial: Trial) -> None:
    tracked = ("tracking=mlflow", f"tracking.uri={server.uri}", "experiment_name=refused")
    for mistake in ("trainer.batch_size=69", "+optimizer.momentums=1", "optimizer.betas=[0.9,2]", "data.n=3"):
        with pytest.raises(ConfigError):
            small_trial(*tracked, mistake)
    good = small_trial(*tracked)  # the helper has seen to the others by now
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("refused")
    assert experiment is not None
    assert [r.info.run_id for r in client.search_runs([experiment.experiment_id])] == [
        run_of(good.folder, server.uri).info.run_id
    ]


def test_a_dead_trial_is_killed_and_a_resumed_one_runs_and_finishes(
    server: Server, uploader: Uploader, small_trial: Trial, tmp_path: Path
) -> None:
    tracked = ("tracking=mlflow", f"tracking.uri={server.uri}", "experiment_name=killed")
    folder = kill_a_trial(tmp_path, *tracked, "trainer.checkpoint_interval_s=0")

    def statuses() -> list[str]:
        return [run.info.status for run in runs_of(folder, server.uri)]

    wait_until(lambda: statuses() == ["KILLED"], what="the helper that the trial left behind")
    seen = []

    def report(epoch: int, metrics: object) -> None:
        wait_until(lambda: statuses() == ["RUNNING"], what="the run to go on")
        uploader.abandon(RunFolder(folder))  # the trial lives: it must not be marked
        seen.append((epoch, statuses()))

    resumed = small_trial(f"resume={folder}", f"tracking.uri={server.uri}", report=report)
    assert seen == [(3, ["RUNNING"]), (4, ["RUNNING"])]
    assert resumed.uploaded
    run = run_of(folder, server.uri)
    assert run.info.status == "FINISHED"
    assert points(run, server.database) == recorded(folder)
    assert [step for step, _ in points(run, server.database)["step/lr"]] == list(range(1, 21))


def test_sync_marks_a_dead_trial_as_killed(server: Server, uploader: Uploader, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    made = Journal(run.journal)
    start(made, "abandoned", store=server.uri)
    made.close()
    run.config.write_text(f"tracking:\n  uri: {server.uri}\n")
    with run.lock():  # as its own process would hold it
        assert sync.main([str(tmp_path), "--uri", server.uri]) == 0
        assert run_of(tmp_path, server.uri).info.status == "RUNNING"
    assert sync.main([str(tmp_path), "--uri", server.uri]) == 0
    assert run_of(tmp_path, server.uri).info.status == "KILLED"


def test_a_trial_that_is_being_sent_is_not_sent_twice_at_once(
    sent: Outcome, server: Server, uploader: Uploader, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder(sent.folder).upload_lock():
        with pytest.raises(Busy):
            uploader.push(RunFolder(sent.folder))
        assert sync.main([str(sent.folder), "--uri", server.uri]) == 1
    assert "another process is sending it" in capsys.readouterr().err


def test_sync_tells_what_it_found(tmp_path: Path, small_trial: Trial, capsys: pytest.CaptureFixture[str]) -> None:
    assert sync.main([str(tmp_path / "nowhere")]) == 2
    assert "no folder" in capsys.readouterr().err
    small_trial()  # untracked
    assert sync.main([str(tmp_path)]) == 0
    assert "0 of 0 tracked runs" in capsys.readouterr().out


def test_a_store_that_is_down_costs_a_warning_and_sync_sends_the_run_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server is killed while a trial runs, is gone when the next one starts, and comes back for the sync."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    overrides = [f"output_dir={tmp_path}/outputs", "experiment_name=outage", *SMALL]
    n_before = len(rows(server.database)["metrics"])

    def kill_server(epoch: int, metrics: object) -> None:
        if epoch == 2:
            wait_until(lambda: len(rows(server.database)["metrics"]) > n_before, what="a first part to arrive")
            server.stop()

    helper = UploadProcess(tmp_path)
    try:
        cut_off = run_trial(compose(overrides), kill_server, upload_process=helper)
        offline = run_trial(compose([*overrides, "seed=1"]), upload_process=helper)
        helper.close()
        wait_until(lambda: helper._process.poll() is not None, what="the helper to give up")
        while_down = rows(server.database)
    finally:
        server.start()
    outcomes = (cut_off, offline)
    for outcome in outcomes:
        assert (outcome.n_epochs, outcome.uploaded, outcome.tracking_uri) == (4, False, server.uri)
        assert (outcome.folder / "curves.png").exists()
    assert "python -m sweep.sync" in caplog.text
    command = [sys.executable, "-m", "sweep.sync", f"{tmp_path}/outputs"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 tracked runs" in done.stdout
    in_store = rows(server.database)
    assert len(in_store["runs"]) == len(while_down["runs"]) + 1, "the run that was cut off goes on"
    for outcome in outcomes:
        run = run_of(outcome.folder, server.uri)
        assert run.info.status == "FINISHED"
        assert points(run, server.database) == recorded(outcome.folder)
    assert sync.main([f"{tmp_path}/outputs"]) == 0
    assert rows(server.database) == in_store
    assert not (tmp_path / "outputs" / "mlflow.db").exists()


def test_sync_sends_all_runs_to_another_store_when_told_so(tmp_path: Path, small_trial: Trial) -> None:
    outcome = small_trial("tracking=mlflow", "tracking.uri=http://127.0.0.1:9", "tracking.close_timeout_s=0")
    elsewhere = f"sqlite:///{tmp_path}/elsewhere.db"
    assert sync.main([str(tmp_path / "outputs"), "--uri", elsewhere]) == 0
    assert run_of(outcome.folder, elsewhere).info.status == "FINISHED"


def test_a_password_is_in_no_file_and_has_to_be_given_again(
    tmp_path: Path, small_trial: Trial, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = uuid.uuid4().hex
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{secret}@127.0.0.1:9")
    outcome = small_trial("tracking=mlflow", "tracking.close_timeout_s=0")
    written = [path for path in outcome.folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert written == []
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sync.main([str(tmp_path / "outputs")]) == 2
    printed = capsys.readouterr().err
    assert "was started in http://me:***@127.0.0.1:9, which is not your own setting" in printed
    assert "with its password" in printed


def test_a_store_that_was_never_there_does_not_stop_a_trial(
    small_trial: Trial, caplog: pytest.LogCaptureFixture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = Server(tmp_path).uri
    outcome = small_trial("tracking=mlflow", f"tracking.uri={closed}", "tracking.close_timeout_s=0.1")
    assert (outcome.n_epochs, outcome.uploaded) == (4, False)
    assert "MLflow lacks this run" in caplog.text
    assert sync.main([str(tmp_path), "--uri", closed]) == 1
    assert "0 of 1 tracked runs" in capsys.readouterr().out


@pytest.mark.parametrize("own", [False, True], ids=["default", "MLFLOW_TRACKING_URI"])
def test_a_database_holds_the_run_and_the_artifacts_stay_below_output_dir(
    own: bool, small_trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = tmp_path / "outputs"
    database = tmp_path / "own.db" if own else outputs / "mlflow.db"
    if own:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    outcome = small_trial("tracking=mlflow")
    assert (outcome.tracking_uri, outcome.uploaded) == (f"sqlite:///{database}", True)
    run = run_of(outcome.folder, f"sqlite:///{database}")
    assert points(run, database) == recorded(outcome.folder)
    (copied,) = (outputs / "mlartifacts").rglob("artifacts/best.pt")
    assert copied.as_uri() == f"{run.info.artifact_uri}/best.pt"


def test_tracking_off_makes_no_store_and_still_draws_the_curves(small_trial: Trial, tmp_path: Path) -> None:
    outcome = small_trial("tracking=off")
    assert (outcome.tracking_uri, outcome.uploaded) == (None, True)
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"runs"}
    assert (outcome.folder / "curves.png").read_bytes().startswith(b"\x89PNG")


_OPEN_AND_PUSH = """
import sys
import uuid
from pathlib import Path
from sweep.tracking import mlflow_client, mlflow_creation
from sweep.tracking.folders import RunFolder
from sweep.tracking.mlflow_batches import batches
from sweep.tracking.mlflow_client import Uploader
from sweep.tracking.store import Store

mlflow_client.make_tables = mlflow_creation.make_tables  # forked processes copy those of an earlier store
outputs, folder = map(Path, sys.argv[1:])
print("ready", flush=True)
sys.stdin.readline()
assert Uploader(Store(f"sqlite:///{outputs}/mlflow.db", outputs / "mlartifacts")).push(RunFolder(folder))
"""


def test_two_processes_may_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made = Journal(RunFolder(tmp_path / name).journal)
        start(made, "both", uid=name)
        made.metrics([1], {"val/loss": [0.5]})
        made.close()
    go_at_once(_OPEN_AND_PUSH, [(str(tmp_path), str(tmp_path / name)) for name in ("one", "two")])
    in_store = rows(tmp_path / "mlflow.db")
    assert len(in_store["runs"]) == len(in_store["metrics"]) == 2
