"""Damaged journals: whatever reads one names the file and the line, and says nothing that is not so."""

import json
import shutil
import signal
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from processes import error_line, quick, with_store
from stores import Study, embedded, points, recorded, run_of

from sweep import Outcome, compose, report, run_trial, sync
from sweep.comparison.runs import read_run
from sweep.config.schema import validate
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.tracking.journal import Journal
from sweep.tracking.mlflow_client import Uploader
from sweep.tracking.stored_run import stored_config
from sweep.tracking.study_upload import Damage, StudyUpload
from sweep.tracking.upload_process import UploadProcess
from sweep.utils.checked_file import write_checked
from sweep.utils.errors import Damaged, DamagedJournal, Interrupted

GARBAGE = b"\x00\xff garbage\n"
Synced = tuple[int, str, str]


def with_garbage(run: RunFolder, line: int) -> None:
    lines = run.journal.read_bytes().splitlines(keepends=True)
    run.journal.write_bytes(b"".join([*lines[: line - 1], GARBAGE, *lines[line - 1 :]]))


def with_flipped_bit(run: RunFolder, number: bytes, file: Path | None = None) -> None:
    """In the last digit of the number, where it stands first. file: the journal by default."""
    file = file or run.journal
    data = file.read_bytes()
    place = data.index(number) + len(number) - 1
    file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return with_store(tmp_path)


@pytest.fixture
def study(outputs: Path) -> Study:
    """A finished study of three trials."""
    study = Study(outputs, "s")
    for number in range(3):
        study.whole_trial(number)
    study.end(study.folder.run)
    return study


@pytest.fixture
def synced(outputs: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], Synced]:
    """Has `sweep.sync` send all: its exit status, what it says, and its complaints."""

    def run() -> Synced:
        status = sync.main([str(outputs)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_sync_names_the_line_sends_what_is_whole_and_counts_the_run_as_not_sent(
    study: Study, outputs: Path, synced: Callable[[], Synced]
) -> None:
    run, uri = study.folder.trial(1), f"sqlite:///{outputs}/mlflow.db"
    whole = run.journal.read_bytes()
    for damage, left in ((lambda: with_garbage(run, 3), [1, 2, 3]), (lambda: with_flipped_bit(run, b"0.5"), [1, 3])):
        damage()
        for _ in range(2):
            status, said, complaint = synced()
            assert (status, said) == (1, f"3 of 4 tracked runs below {outputs} are in MLflow\n")
            assert complaint.startswith(f"error: journal: line 3 of '{run.journal}' is damaged")
            assert complaint.count("\n") == 1
            in_store = run_of(run.path, uri)
            assert in_store.info.status == "FINISHED"
            assert [step for step, _ in points(in_store, outputs / "mlflow.db")["val/loss"]] == left
        with_store(outputs)
        run.journal.write_bytes(whole)
    assert synced()[:2] == (0, f"4 of 4 tracked runs below {outputs} are in MLflow\n")
    assert points(run_of(run.path, uri), outputs / "mlflow.db") == recorded(run.path)


def test_a_record_that_was_sent_and_is_then_damaged_is_not_all_there(
    study: Study, outputs: Path, synced: Callable[[], Synced]
) -> None:
    assert synced()[0] == 0
    (first, second, third), own = (study.folder.trial(number) for number in range(3)), study.folder.run
    with_flipped_bit(first, b"0.5")
    second.journal.write_bytes(second.journal.read_bytes()[:-1])  # whose end MLflow has
    third.journal.write_bytes(b"")
    with_garbage(own, 2)
    status, said, complaint = synced()
    assert (status, said) == (1, f"0 of 4 tracked runs below {outputs} are in MLflow\n")
    for run in (first, second, third, own):
        assert complaint.count(f"'{run.journal}' is damaged") == 1
    assert f"line 2 of '{own.journal}'" in complaint  # not the line at which MLflow's copy ends
    with closing(sqlite3.connect(outputs / "mlflow.db")) as database:
        assert {status for (status,) in database.execute("SELECT status FROM runs")} == {"FINISHED"}


def test_a_damaged_journal_is_one_line_though_others_need_it_and_its_curves_cannot_be_drawn(
    study: Study, outputs: Path, synced: Callable[[], Synced]
) -> None:
    last = study.trial(3)
    study.epochs(last)
    study.end(last, artifacts=["curves.png"])
    with_garbage(last, 3)
    status, said, complaint = synced()
    assert (status, said) == (1, f"4 of 5 tracked runs below {outputs} are in MLflow\n")
    assert complaint.count("\n") == 1
    assert complaint.endswith("; what can be read of the run is sent\n")
    with_store(outputs)
    own = study.folder.run.journal
    own.write_bytes(GARBAGE + own.read_bytes())
    status, said, complaint = synced()
    assert (status, said) == (1, f"0 of 5 tracked runs below {outputs} are in MLflow\n")
    assert complaint == f"error: journal: line 1 of '{own}' is damaged (it is not JSON); put back a copy of the file\n"


def test_a_journal_without_its_start_is_named(study: Study, outputs: Path, synced: Callable[[], Synced]) -> None:
    run = study.folder.trial(0)
    run.journal.write_bytes(b"".join(run.journal.read_bytes().splitlines(keepends=True)[1:]))
    for data in (run.journal.read_bytes(), b"[]\n", b'{"kind": "end", "status": "FINISHED"}\n'):
        run.journal.write_bytes(data)
        status, said, complaint = synced()
        assert (status, said) == (1, f"3 of 4 tracked runs below {outputs} are in MLflow\n")
        assert f"'{run.journal}' is damaged" in complaint


def test_no_record_that_sweep_would_not_write_keeps_the_others_from_being_sent(
    study: Study, outputs: Path, synced: Callable[[], Synced]
) -> None:
    """Each line has the checksum that belongs to it."""
    run = study.folder.trial(1)
    whole, config = run.journal.read_bytes(), run.config.read_bytes()
    start, *rest = (record for record, _ in journal.read(run.journal))
    odd: list[tuple[str, object]] = [("params", "abc"), ("tags", ["x"]), ("uid", None), ("parent", 5), ("dataset", [])]
    for place, field, value in [(0, *one) for one in odd] + [(1, "values", {"a": [1, 2]}), (1, "steps", ["1"])]:
        records = [dict(record) for record in (start, *rest)]
        records[place][field] = value
        run.journal.unlink()
        with Journal(run.journal) as made:
            for record in records:
                made._append(record)
        assert f"line {place + 1} of '{run.journal}' is damaged (its '{field}' is" in _not_sent(synced, outputs)
    run.journal.unlink()
    run.journal.mkdir()
    assert f"'{run.path}' is damaged ([Errno 21] Is a directory" in _not_sent(synced, outputs)
    run.journal.rmdir()
    run.journal.write_bytes(whole)
    run.config.write_text("tracking: [1]\n")
    assert f"'{run.config}' is damaged (" in _not_sent(synced, outputs)
    run.config.unlink()
    assert f"'{run.config}' is damaged (it is gone)" in _not_sent(synced, outputs)
    run.config.write_bytes(config)
    assert synced()[:2] == (0, f"4 of 4 tracked runs below {outputs} are in MLflow\n")


def _not_sent(synced: Callable[[], Synced], outputs: Path) -> str:
    """What is said of one run, while the others are sent."""
    status, said, complaint = synced()
    assert (status, said) == (1, f"3 of 4 tracked runs below {outputs} are in MLflow\n")
    assert complaint.startswith("error: ")
    assert complaint.count("\n") == 1
    return complaint


def test_a_record_that_lost_its_end_is_not_all_there(study: Study, outputs: Path, synced: Callable[[], Synced]) -> None:
    ended, own = study.folder.trial(0), study.folder.run
    ended.best.write_bytes(b"is written right before the end")
    study.folder.results.write_text("so is this")
    for run in (ended, own):
        whole = run.journal.read_bytes()
        run.journal.write_bytes(whole[: whole.rindex(b'{"kind": "end"') + 20])
        status, said, complaint = synced()
        assert (status, said) == (1, f"3 of 4 tracked runs below {outputs} are in MLflow\n")
        assert f"'{run.journal}' has no end (the process died as it ended, or lines are lost); " in complaint
        with_store(outputs)
        for state in outputs.rglob("mlflow.json"):
            state.unlink()
        run.journal.write_bytes(whole)
    assert synced()[:2] == (0, f"4 of 4 tracked runs below {outputs} are in MLflow\n")


def test_a_run_whose_record_is_gone_is_named_whether_it_was_sent_or_not(
    study: Study, outputs: Path, synced: Callable[[], Synced]
) -> None:
    run = study.folder.trial(1)
    write_checked(run.config, "tracking: {}\n")
    write_checked(run.overrides, "[]\n")
    copies = outputs / "mlartifacts" / "0" / "artifacts"  # such as MLflow has them
    shutil.copytree(run.path, copies)
    (copies / run.journal.name).unlink()
    whole = run.journal.read_bytes()
    run.journal.unlink()
    gone = (
        f"error: journal: '{run.journal}' is damaged (it is gone, but the run has begun); put back a copy of the file\n"
    )
    for _ in range(2):
        assert synced() == (1, f"3 of 4 tracked runs below {outputs} are in MLflow\n", gone)
        run.journal.write_bytes(whole)
        assert synced()[0] == 0
        run.journal.unlink()
    run.config.unlink()
    assert synced()[2] == gone
    run.sync_state.unlink()
    write_checked(run.config, "tracking: {mlflow: false}\n")
    assert synced() == (0, f"3 of 3 tracked runs below {outputs} are in MLflow\n", "")


def test_a_damaged_artifact_is_named_and_not_sent(study: Study, outputs: Path, synced: Callable[[], Synced]) -> None:
    run = study.folder.trial(1)
    write_checked(run.overrides, "- seed=1\n")
    whole = run.overrides.read_bytes()
    with_flipped_bit(run, b"=1", run.overrides)
    with Journal(run.journal) as record:
        record.event("end", status="FINISHED", steps=[], values={}, tags={}, artifacts=[run.overrides.name])
    for _ in range(2):
        status, said, complaint = synced()
        assert (status, said) == (1, f"3 of 4 tracked runs below {outputs} are in MLflow\n")
        assert complaint.startswith(f"error: output_dir: '{run.overrides}' is damaged")
        assert not list(outputs.rglob(f"artifacts/{run.overrides.name}"))
    run.overrides.write_bytes(whole)
    assert synced()[0] == 0
    assert [path.read_bytes() for path in outputs.rglob(f"artifacts/{run.overrides.name}")] == [whole]


@pytest.mark.parametrize("damage", ["flipped", "torn", "another run", "empty", "other values", "a list"])
def test_what_mlflow_was_sent_is_forgotten_where_its_record_is_damaged(
    damage: str, study: Study, outputs: Path, synced: Callable[[], Synced]
) -> None:
    assert synced()[0] == 0
    state = study.folder.trial(1).sync_state
    text = state.read_text()
    ((store, known),) = json.loads(text).items()
    offset = str(known["offset"])
    state.write_text(
        {
            "flipped": text.replace(offset, str(int(offset) ^ 1)),
            "torn": text[: len(text) // 2],
            "another run": json.dumps({store: known | {"run_id": "0" * 32}}),
            "empty": "",
            "other values": json.dumps({store: 5}),
            "a list": "[1]",
        }[damage]
    )
    assert synced()[0] == 0
    run = run_of(study.folder.trial(1).path, f"sqlite:///{outputs}/mlflow.db")
    assert points(run, outputs / "mlflow.db") == recorded(study.folder.trial(1).path)


def test_the_helper_of_a_study_says_which_line_is_damaged_and_sends_the_rest(study: Study, outputs: Path) -> None:
    uploader = Uploader(embedded(outputs))
    with_garbage(study.folder.trial(1), 4)
    problem = StudyUpload(study.folder, lambda: uploader).finish(lambda n_left: None)
    assert isinstance(problem, Damage)
    assert problem.startswith(f"journal: line 4 of '{study.folder.trial(1).journal}' is damaged")
    assert run_of(study.folder.path, f"sqlite:///{outputs}/mlflow.db").info.status == "FINISHED"


def test_a_report_says_nothing_of_a_damaged_record(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    with_garbage(study.folder.run, 2)
    before = study.folder.run.journal.read_bytes()
    assert report.main(["s", "--output-dir", str(study.folder.path.parent.parent)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: journal: line 2 of '{study.folder.run.journal}' is damaged")
    assert not study.folder.report.exists()
    assert study.folder.run.journal.read_bytes() == before


def test_a_comparison_does_not_take_a_damaged_record_for_a_failed_run(study: Study) -> None:
    run = study.folder.trial(0)
    whole = run.journal.read_bytes()
    run.journal.write_bytes(whole[: whole.rindex(b'{"kind": "end"')])
    with pytest.raises(DamagedJournal, match="has no end"):
        read_run(run, "complete")
    assert read_run(run, "failed") is None
    run.journal.write_bytes(whole)
    with_flipped_bit(run, b"0.5")
    with pytest.raises(DamagedJournal):
        read_run(run, "complete")


@pytest.mark.process
def test_a_damaged_record_is_not_resumed(small_trial: Callable[..., Outcome], tmp_path: Path) -> None:
    run = RunFolder(small_trial().folder)
    with_garbage(run, 2)
    files = {path: path.read_bytes() for path in run.path.iterdir()}
    config = validate(compose([]))
    for resume in (lambda: stored_config(run, config), lambda: run_trial(compose([f"resume={run.path}"]))):
        with pytest.raises(DamagedJournal, match=r"line 2 of .* start a new run") as caught:
            resume()
        assert caught.value.exit_status == 1
    assert {path: path.read_bytes() for path in run.path.iterdir()} == files


@pytest.mark.process
def test_a_run_that_lost_its_config_is_not_resumed(study: Study, tmp_path: Path) -> None:
    run = study.folder.trial(0)
    run.config.unlink()
    line = error_line(quick(tmp_path, f"resume={run.path}", torch=False))
    assert line.startswith(f"error: resume: '{run.config}' is damaged (it is gone); start a new run")


@pytest.mark.process
def test_a_resumed_run_whose_journal_lost_its_end_is_sent_whole(outputs: Path, upload_process: UploadProcess) -> None:
    def stop(epoch: int, metrics: Mapping[str, float]) -> None:
        raise Interrupted(signal.SIGTERM)

    run = RunFolder(outputs / "runs" / "x")
    with pytest.raises(Interrupted):
        run_trial(
            compose(["experiment=debug", f"output_dir={outputs}"]), stop, folder=run.path, upload_process=upload_process
        )
    *lines, end = run.journal.read_bytes().splitlines(keepends=True)
    assert b"KILLED" in end
    run.journal.write_bytes(b"".join(lines))
    outcome = run_trial(compose([f"resume={run.path}", f"output_dir={outputs}"]), upload_process=upload_process)
    assert outcome.uploaded
    in_store = run_of(run.path, f"sqlite:///{outputs}/mlflow.db")
    assert points(in_store, outputs / "mlflow.db") == recorded(run.path)


def test_a_trial_that_lost_its_config_is_damaged_and_so_stops_its_study(study: Study) -> None:
    """A study goes on past a trial that failed, and not past one that is Damaged."""
    run = study.folder.trial(0)
    run.config.unlink()
    with pytest.raises(Damaged, match=r"config.yaml' is damaged \(it is gone\); start a new run; in a study, remove"):
        stored_config(run, validate(compose([])))
