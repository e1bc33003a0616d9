"""sweep/tracking/run_copies.py: a run's copy can be resumed from elsewhere, and MLflow has nothing of it twice."""

import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from mlflow import MlflowClient
from processes import with_store
from stores import Study, embedded, points, run_of, runs_of
from waiting import PATIENCE_S

from sweep import Trial, run_study, studies, sync_outputs
from sweep.execution.session import WorkerSession
from sweep.manage import plan_removal
from sweep.tracking import journal
from sweep.tracking.chunks import may_send, note_copied
from sweep.tracking.folders import RunFolder
from sweep.tracking.mlflow_client import Uploader
from sweep.tracking.mlflow_runs import StoredRuns
from sweep.tracking.run_copies import Copying, RunCopies, absolute_place, copy_name, restore
from sweep.tracking.store import Store
from sweep.tracking.upload_process import _Uploads
from sweep.utils.errors import BeingTrained, ConfigError, Interrupted

UID = "0123456789abcdef"


@pytest.fixture(params=["folder", "memory"])
def copies(request: pytest.FixtureRequest, tmp_path: Path) -> RunCopies:
    url = str(tmp_path / "copies") if request.param == "folder" else f"memory://{tmp_path.name}"
    made = RunCopies(url, "s", UID)
    made.check()
    return made


def machine(folder: Path) -> Study:
    """The study's folder on one of the machines."""
    study = Study(folder, "s", uid=UID)
    study._uid = UID
    return study


def epochs(run: RunFolder) -> list[int]:
    return journal.curves(run.journal)["val/loss"].steps.tolist()


def test_a_run_goes_on_from_its_copy_and_then_the_other_way_round(copies: RunCopies, tmp_path: Path) -> None:
    here, there = machine(tmp_path / "here"), machine(tmp_path / "there")
    run = here.trial(0)
    here.epochs(run, 1, 2)
    run.checkpoint.write_bytes(b"after 2")
    (run.path / "of the function").mkdir()
    (run.path / "of the function" / "state").write_bytes(b"its own")
    copies.put(run, copy_name(0, 0, None))
    here.epochs(run, 3, 3)  # which is lost with the machine

    other = there.folder.trial(0)
    assert [one.path for one in restore(copies, there.folder, 0, 0, [None])] == [other.path]
    assert epochs(other) == [1, 2]
    assert other.checkpoint.read_bytes() == b"after 2"
    assert (other.path / "of the function" / "state").read_bytes() == b"its own"
    there.trial(0)
    there.epochs(other, 3, 5)
    other.checkpoint.write_bytes(b"after 5")
    copies.put(other, copy_name(0, 0, None))

    assert restore(copies, here.folder, 0, 0, [None])
    assert epochs(run) == [1, 2, 3, 4, 5]
    assert run.checkpoint.read_bytes() == b"after 5"
    here.trial(0)
    here.epochs(run, 6, 6)
    assert restore(copies, here.folder, 0, 0, [None]) == [], "the copy is older"
    assert epochs(run)[-1] == 6


def test_a_trial_that_began_anew_elsewhere_sets_aside_what_is_here(copies: RunCopies, tmp_path: Path) -> None:
    here, there = machine(tmp_path / "here"), machine(tmp_path / "there")
    for replicate in (0, 1):
        here.epochs(here.trial(0, replicate), 1, 3)
        anew = there.trial(0, replicate, uid=f"anew {replicate}")
        there.epochs(anew, 1, 1)
        copies.put(anew, copy_name(0, 0, replicate))
    assert len(restore(copies, here.folder, 0, 0, [0, 1])) == 2
    assert journal.uid(here.folder.trial(0, 1).journal) == "anew 1"
    aside = RunFolder(here.folder.trials / "0.lost-1" / "seed-1")
    assert epochs(aside) == [1, 2, 3]
    assert restore(copies, here.folder, 0, 1, [0, 1]) == [], "the next attempt has no copy yet"


def test_a_checkpoint_that_is_saved_while_another_one_is_copied_is_copied_next(
    copies: RunCopies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = machine(tmp_path / "here"), machine(tmp_path / "there")
    run, put, is_copied, go = here.trial(0), copies.put, threading.Event(), threading.Event()

    def slowly(run: RunFolder, name: str) -> None:
        put(run, name)
        is_copied.set()
        assert go.wait(PATIENCE_S)

    monkeypatch.setattr(copies, "put", slowly)
    copying = Copying(copies)
    for epoch in (1, 2, 3):
        here.epochs(run, epoch, epoch)
        run.checkpoint.write_bytes(b"after %d" % epoch)
        copying.keep(run, "0")
        assert is_copied.wait(PATIENCE_S)
    go.set()
    copying.close()
    (other,) = restore(copies, there.folder, 0, 0, [None])
    assert (epochs(other), other.checkpoint.read_bytes()) == ([1, 2, 3], b"after 3")


def test_mlflow_has_no_more_of_a_run_than_its_copy(tmp_path: Path) -> None:
    study = machine(with_store(tmp_path))
    uploader = Uploader(embedded(tmp_path))
    run = study.trial(0)
    copying = Copying(RunCopies(str(tmp_path / "copies"), "s", UID))
    study.epochs(run, 1, 2)
    copying._copies.put(run, "0")
    study.epochs(run, 3, 4)
    study.end(run)

    def sent() -> list[int]:
        uploader.push_complete([run])
        uploader.push(run)
        found = run_of(run.path, f"sqlite:///{tmp_path}/mlflow.db")
        return [step for step, _ in points(found, tmp_path / "mlflow.db")["val/loss"]]

    assert sent() == [1, 2]
    copying.finish(run, "0")
    assert sent() == [1, 2, 3, 4]
    copying.close()


def test_sync_says_that_a_run_waits_for_what_its_copy_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_store(tmp_path)
    study = machine(tmp_path)
    run = study.trial(0, store="sqlite:///mlflow.db")
    study.epochs(run, 1, 2)
    note_copied(run, run.journal.stat().st_size)
    study.epochs(run, 3, 3)  # then it is interrupted
    uri = embedded(tmp_path).uri
    found = sync_outputs(tmp_path, uri=uri)
    assert (found.n_tracked, found.n_sent) == (2, 1)
    assert f"{run.path}: what it recorded since its last copy is sent once" in capsys.readouterr().err
    note_copied(run)  # it was resumed, and has ended
    found = sync_outputs(tmp_path, uri=uri)
    assert (found.n_tracked, found.n_sent) == (2, 2)
    assert "last copy" not in capsys.readouterr().err


def test_copies_go_with_their_study_if_the_place_is_named(
    copies: RunCopies, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of another study of that name stay."""
    study, url = machine(tmp_path / "outputs"), copies._url
    other = RunCopies(url, "s", f"another {UID}")
    for place in (copies, other):
        place.begin()
        place.put(study.whole_trial(0), copy_name(0, 0, None))
    folder = study.folder.path
    for named, line in ((None, "copies of its runs stay"), (f"{url}/empty", "there are no copies of its runs in")):
        lines = list[str]()
        plan_removal(folder, keep_runs=True, artifacts=named)._remove_copies(lines.append)
        assert lines[0].startswith(line)
    assert studies.main(["remove", str(folder), "--yes", "--keep-runs", "--artifacts", url]) == 0
    assert f"the copies of its runs in {copies.place}" in capsys.readouterr().out
    assert not folder.exists()
    fs, root = copies._root()
    assert not fs.exists(root)
    again = machine(tmp_path / "again").folder.trial(0)
    assert not copies.fetch(again, copy_name(0, 0, None))
    assert other.fetch(again, copy_name(0, 0, None))


def test_a_run_whose_copy_cannot_be_made_is_sent_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sweep.tracking.run_copies._PAUSES_S", ())
    study = machine(tmp_path)
    run = study.whole_trial(0)
    stopped = study.trial(1)
    study.epochs(stopped)
    study.end(stopped, "KILLED")
    (tmp_path / "file").touch()
    copying = Copying(RunCopies(str(tmp_path / "file"), "s", UID))
    for one in (run, stopped):
        note_copied(one, 0)
        copying.finish(one, "0")
    copying.close()
    assert may_send(run) == sys.maxsize
    assert may_send(stopped) == 0, "another machine may record the same epochs"
    line, _ = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"warning: '{run.path}' has no copy in {tmp_path / 'file'}/s-01234567 (")


def test_what_a_dying_machine_left_half_written_is_not_brought(tmp_path: Path) -> None:
    here, there = machine(tmp_path / "here"), machine(tmp_path / "there")
    copies = RunCopies(str(tmp_path / "copies"), "s", UID)
    run = here.trial(0)
    here.epochs(run, 1, 2)
    run.checkpoint.write_bytes(b"after 2")
    copies.put(run, "0")
    copied = tmp_path / "copies" / f"s-{UID[:8]}" / "0"
    for name in (run.journal.name, f"{run.journal.name}.89abcdef", run.checkpoint.name):
        (copied / f"{name}.tmp").write_bytes(run.journal.read_bytes()[:40])
    (other,) = restore(copies, there.folder, 0, 0, [None])
    assert epochs(other) == [1, 2]
    assert other.checkpoint.read_bytes() == b"after 2"
    assert not [*other.path.glob("*.tmp")]


class Objects(AbstractFileSystem):
    """An object store: an object is replaced once all parts of the new one are there. Its network may break off."""

    protocol = "objects"
    objects: ClassVar[dict[str, bytes]] = {}
    is_broken = False

    def _open(self, path: Any, mode: str = "rb", *_: Any, **__: Any) -> "Parts":
        size: Any = 1 << 16
        return Parts(self, path, mode, block_size=size)


class Parts(AbstractBufferedFile):
    def _initiate_upload(self) -> None:
        self.parts = b""

    def _upload_chunk(self, final: bool = False) -> None:
        if Objects.is_broken and self.path.endswith("checkpoint.pt"):
            Objects.is_broken = False
            raise OSError("the network broke off")
        self.parts += self.buffer.getvalue()
        if final:
            Objects.objects[self.path] = self.parts


def test_a_checkpoint_whose_transfer_breaks_off_leaves_the_one_before(tmp_path: Path) -> None:
    fsspec.register_implementation("objects", Objects, clobber=True)
    study = machine(tmp_path)
    run = study.trial(0)
    copies = RunCopies("objects://bucket", "s", UID)
    whole = f"bucket/s-{UID[:8]}/0/checkpoint.pt"
    for epoch in (1, 2):
        study.epochs(run, epoch, epoch)
        run.checkpoint.write_bytes(b"%d" % epoch * 300_000)
        Objects.is_broken = epoch == 2
        if epoch == 1:
            copies.put(run, "0")
        else:
            with pytest.raises(OSError, match="broke off"):
                copies.put(run, "0")
        assert Objects.objects[whole] == b"1" * 300_000
    copies.put(run, "0")
    assert Objects.objects[whole] == b"2" * 300_000


def test_a_trial_that_is_trained_here_is_left_alone(tmp_path: Path) -> None:
    here, there = machine(tmp_path / "here"), machine(tmp_path / "there")
    copies = RunCopies(str(tmp_path / "copies"), "s", UID)
    run, anew = here.trial(0), there.trial(0, uid="anew")
    there.epochs(anew)
    copies.put(anew, "0")
    with run.lock(), pytest.raises(BeingTrained):
        restore(copies, here.folder, 0, 0, [None])
    assert journal.uid(run.journal) != "anew"
    assert restore(copies, here.folder, 0, 0, [None])


def test_a_place_of_the_same_name_on_another_machine_is_another_place(tmp_path: Path) -> None:
    copies = RunCopies(str(tmp_path / "copies"), "s", UID)
    copies.check()
    assert [*(tmp_path / "copies").iterdir()] == [], "nothing of a study that may be refused yet"
    copies.begin()
    RunCopies(str(tmp_path / "copies"), "s", UID).check_begun()
    with pytest.raises(ConfigError, match=r"^hydra.sweeper.artifacts: host '.*' does not find the study's copies in /"):
        RunCopies(str(tmp_path / "other"), "s", UID).check_begun()


def test_a_run_is_in_mlflow_once_although_the_machine_that_resumes_it_saw_none_there(tmp_path: Path) -> None:
    store = embedded(with_store(tmp_path))
    here, there = machine(tmp_path / "here"), machine(tmp_path / "there")
    copies = RunCopies(str(tmp_path / "copies"), "s", UID)
    sends = Uploader(store)
    sends.push(there.whole_trial(1))  # it asks whether the study has runs, and that is the first
    lost = here.trial(0)
    here.epochs(lost, 1, 2)
    copies.put(lost, "0")
    Uploader(store).push(lost)
    (run,) = restore(copies, there.folder, 0, 0, [None])
    there.trial(0)
    there.epochs(run, 3, 3)
    there.end(run)
    copies.put(run, "0")
    sends.push_complete([run])
    sends.push(run)
    (found,) = runs_of(run.path, f"sqlite:///{tmp_path}/mlflow.db")
    assert [step for step, _ in points(found, tmp_path / "mlflow.db")["val/loss"]] == [1, 2, 3]


@pytest.mark.parametrize("has_command", [True, False])
def test_machines_that_create_the_run_of_a_study_at_once_keep_one(
    has_command: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.tracking.mlflow_runs._GIVE_WAY_S", 0.0)
    store = embedded(with_store(tmp_path))
    first, second = machine(tmp_path / "a"), machine(tmp_path / "b")
    second.folder.run.journal.rename(tmp_path / "journal")  # a launcher's node has no record of the study
    if has_command:
        (tmp_path / "journal").rename(second.folder.run.journal)
    Uploader(store).push(first.whole_trial(0))
    sends, run = Uploader(store), second.whole_trial(1)
    with monkeypatch.context() as early:
        early.setattr(StoredRuns, "_find_own", lambda *_: None)  # it has looked before the other one created it
        sends.push(run)
    sends.push(run)
    client = MlflowClient(store.uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "s"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [one for one in runs if one.data.tags["sweep.uid"] == UID]
    assert len(runs) == 3
    assert {one.data.tags["mlflow.parentRunId"] for one in runs if one is not parent} == {parent.info.run_id}


def test_copies_are_sent_to_a_file_that_the_machine_which_trained_them_does_not_reach(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    own = Store(f"sqlite:///{with_store(tmp_path / 'elsewhere')}/mlflow.db", tmp_path / "mlartifacts")
    study = machine(tmp_path)
    run = study.whole_trial(0)
    run.copy_mark.touch()
    uploads = _Uploads(lambda answer: None)
    uploads._add({"study": str(study.folder.path)}, own)
    assert uploads._finish(str(study.folder.path)) is None
    assert run_of(run.path, own.uri or "").info.status == "FINISHED"


@pytest.mark.process
@pytest.mark.parametrize("again", ["copies", None])
def test_a_run_whose_worker_died_before_the_last_copy(
    again: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next worker copies it. If copies are no longer asked for, MLflow gets all of it."""
    monkeypatch.chdir(tmp_path)

    def train(cfg: Any, trial: Trial) -> dict[str, float]:
        trial.report(1, {"val/loss": 1.0})
        return {}

    def study(artifacts: str | None) -> Any:
        base = ["tracking=off", "trainer.epochs=1"]
        return run_study(base, {"seed": [1]}, study_name="s", train=train, n_trials=1, artifacts=artifacts)

    def die(*_: object) -> None:
        raise Interrupted(15)

    with monkeypatch.context() as dying:
        dying.setattr(Copying, "finish", lambda *_: None)
        dying.setattr(WorkerSession, "_tell", die)
        with pytest.raises(Interrupted):
            study("copies")
    run = RunFolder(tmp_path / "outputs/studies/s/trials/0")
    assert journal.status(run.journal) == "FINISHED"
    assert may_send(run) == 0
    assert study(again).status.n_done == 1
    assert may_send(run) >= run.journal.stat().st_size
    copied = [*(tmp_path / "copies").glob("s-*/0/journal.jsonl")]
    assert [journal.status(path) for path in copied] == (["FINISHED"] if again else [])


@pytest.mark.parametrize("url", ["nonsense://bucket", "/proc/nowhere"])
def test_a_place_that_cannot_be_used_is_one_line(url: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^hydra.sweeper.artifacts: cannot keep copies in '{url}' \(.*; name a folder"
    ):
        RunCopies(url, "s", UID).check()


def test_a_relative_folder_is_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_place("copies") == str(tmp_path / "copies")
    assert absolute_place("s3://bucket/copies") == "s3://bucket/copies"
