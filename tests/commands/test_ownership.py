"""What the user owns: no command removes or overwrites a file that it did not make."""

from pathlib import Path

import pytest
from processes import error_line, quick

from sweep import compose, run_trial
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.tracking.ownership import JobFolder
from sweep.utils.errors import ConfigError
from sweep.utils.ownership import refuse_existing

pytestmark = pytest.mark.process  # commands, servers, a browser

DEBUG = ("experiment=debug", "tracking=off")


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and directory below the folder, by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with files of the user's, and with an empty folder."""
    folder = tmp_path / "mine"
    (folder / "empty").mkdir(parents=True)
    (folder / "photos").mkdir()
    (folder / "photos" / "a.jpg").write_bytes(b"\xff\xd8")
    (folder / "thesis.tex").write_text("mine")
    return folder


EXPERIMENT = "# @package _global_\nhydra: {run: {dir: .}}\ntrainer: {epochs: -1}\n"
REFUSED = {
    "here": ("sweep.run", ["hydra.run.dir=.", "trainer.epochs=-1"]),
    "absolute": ("sweep.run", ["hydra.run.dir={mine}", "trainer.epochs=-1"]),
    "an empty folder": ("sweep.run", ["hydra.run.dir={mine}/empty", "trainer.epochs=-1"]),
    "a new folder": ("sweep.run", ["hydra.run.dir={mine}/new/of/three", "trainer.epochs=-1"]),
    "the usual folder": ("sweep.run", ["trainer.epochs=-1"]),
    "with Hydra's files": ("sweep.run", ["hydra.run.dir=.", "hydra.output_subdir=.hydra", "trainer.epochs=-1"]),
    "an experiment's": ("sweep.run", ["hydra.searchpath=[file://{conf}]", "experiment=mine"]),
    "the scheduler removed": ("sweep.run", ["~scheduler"]),
    "late": ("sweep.run", ["hydra.run.dir=.", "data=table", "data.path=none.csv", "data.target=y"]),
    "after its lock": ("sweep.run", ["hydra.run.dir=.", "experiment=debug", "model.dropout=x"]),
    "after a line in its log": ("sweep.run", ["hydra.run.dir=.", "optimizer.lr=1", "optimizer.nope=1"]),
    "several": ("sweep.run", ["-m", "hydra/sweeper=basic", "trainer.epochs=-1,-2"]),
    "one of several": ("sweep.run", ["-m", "hydra/sweeper=basic", "hydra.sweep.dir=.", "trainer.epochs=-1,-2"]),
    "a range test": ("sweep.lr_range", ["hydra.run.dir=.", "lr_range.n_seeds=0"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_command_leaves_the_folder_as_it_was(case, mine):
    conf = mine.parent / "conf"
    (conf / "experiment").mkdir(parents=True)
    (conf / "experiment" / "mine.yaml").write_text(EXPERIMENT)
    before = contents(mine)
    module, overrides = REFUSED[case]
    given = [o.format(mine=mine, conf=conf) for o in overrides]
    done = quick(mine, "output_dir=../outputs", *given, module=module, torch=case == "after its lock")
    assert done.returncode == 2, done.stderr
    assert error_line(done).startswith("error: ")
    assert contents(mine) == before
    assert not (mine.parent / "outputs").exists()


FILE = "hydra.job_logging.handlers.file"
SHARED = "handlers.s={class: logging.FileHandler, filename: %s}"
OPENED_AT_ONCE = {
    "the run's": ["hydra.run.dir=.", f"{FILE}.delay=false"],
    "named on the command line": [f"{FILE}.delay=false", f"{FILE}.filename=new.log"],
    "of several runs": [
        *("-m", "hydra/sweeper=basic", "hydra.job_logging.root.handlers=[console,s]"),
        "+hydra.job_logging." + SHARED % '"${hydra.sweep.dir}/s.log"',
    ],
    "Hydra's": ["-m", "hydra.hydra_logging.root.handlers=[s]", "+hydra.hydra_logging." + SHARED % "new.log"],
}


@pytest.mark.parametrize("case", OPENED_AT_ONCE)
def test_a_refused_command_leaves_no_log_that_it_opened_at_once(case, mine):
    before = contents(mine)
    done = quick(mine, "output_dir=../outputs", "trainer.epochs=-1", *OPENED_AT_ONCE[case], torch=False)
    assert error_line(done) == "error: trainer.epochs: must be >= 1, got -1"
    assert contents(mine) == before
    assert not (mine.parent / "outputs").exists()


def test_a_refused_command_leaves_an_empty_log_that_was_there(mine):
    (mine / "new.log").touch()
    done = quick(mine, "trainer.epochs=-1", *OPENED_AT_ONCE["named on the command line"], torch=False)
    assert done.returncode == 2
    assert (mine / "new.log").exists()


@pytest.mark.parametrize("name", ["config.yaml", "journal.jsonl", "curves.png", "run.log", "best.pt.tmp"])
def test_a_run_overwrites_no_file_of_the_user(name, mine):
    (mine / name).write_text('{"my": "own"}\n')
    before = contents(mine)
    done = quick(mine, *DEBUG, "output_dir=../outputs", "hydra.run.dir=.", torch=False)
    assert error_line(done) == (
        f"error: hydra.run.dir: '{mine}' has files that would be overwritten ({name}); choose another folder"
    )
    assert (done.returncode, contents(mine)) == (2, before)


def test_a_warning_about_the_config_does_not_make_the_folder_of_a_new_run_a_used_one(tmp_path):
    done = quick(tmp_path, *DEBUG, "optimizer.lr=0.1")
    assert (done.returncode, done.stderr) == (0, "")
    warning = "warning: optimizer.lr has no effect"
    assert warning in done.stdout
    (log,) = tmp_path.glob("outputs/runs/*/run.log")
    assert warning in log.read_text()


@pytest.mark.parametrize("name", ["multirun.yaml", "optimization_results.yaml"])
def test_a_sweep_overwrites_no_file_of_the_user(name, mine):
    (mine / name).write_text("mine")
    before = contents(mine)
    done = quick(mine, "-m", "hydra/sweeper=basic", "hydra.sweep.dir=.", "trainer.epochs=-1,-2", torch=False)
    message = f"error: hydra.sweep.dir: '{mine}' has files that would be overwritten ({name}); choose another folder"
    assert (error_line(done), contents(mine)) == (message, before)


def test_nor_do_hydras_files_of_a_job(mine):
    (mine / ".mine").mkdir()
    (mine / ".mine" / "hydra.yaml").write_text("mine")
    before = contents(mine)
    done = quick(mine, "hydra.run.dir=.", "hydra.output_subdir=.mine", torch=False)
    message = f"error: hydra.output_subdir: '{mine}/.mine' has files that would be overwritten (hydra.yaml); choose"
    assert error_line(done).startswith(message)
    assert contents(mine) == before


def test_a_file_of_the_name_of_the_record_hides_no_other_error(mine):
    (mine / "journal.jsonl").write_text('{"my": "own"}\n')
    before = contents(mine)
    with pytest.raises(ConfigError, match=r"^folder: .* has files that would be overwritten \(journal.jsonl\)"):
        run_trial(compose(DEBUG), folder=mine)
    JobFolder(mine).leave_unused()
    assert contents(mine) == before


# A folder that holds a run


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run in a folder that its user named, twice as a job of several and once alone."""
    cwd = tmp_path_factory.mktemp("held")
    done = quick(cwd, "-m", "hydra/sweeper=basic", *DEBUG, "hydra.sweep.dir=fixed", "seed=0,1")
    assert done.returncode == 0, done.stderr
    return RunFolder(cwd / "fixed" / "0")


def test_a_folder_that_holds_a_run_is_not_continued_by_another_one(held):
    before = contents(held.path)
    done = quick(held.path.parent, *DEBUG, f"hydra.run.dir={held.path}", "seed=5", torch=False)
    line = error_line(done)
    assert line.startswith(f"error: hydra.run.dir: '{held.path}' holds a run already")
    assert "resume=" in line
    assert "another folder" in line
    assert (done.returncode, contents(held.path)) == (2, before)


def test_nor_by_one_of_several(held):
    cwd = held.path.parent.parent
    command = ("-m", "hydra/sweeper=basic", *DEBUG, "hydra.sweep.dir=fixed", "seed=5,6")
    before = contents(held.path.parent)
    done = quick(cwd, *command, torch=False)
    message = f"error: hydra.sweep.dir: '{held.path.parent}' has files that would be overwritten (multirun.yaml)"
    assert error_line(done).startswith(message)
    assert contents(held.path.parent) == before
    (held.path.parent / "multirun.yaml").unlink()
    before = contents(held.path.parent)
    done = quick(cwd, *command, torch=False)
    assert error_line(done).startswith(f"error: hydra.sweep.dir: '{held.path}' holds a run already")
    assert done.returncode == 2
    assert contents(held.path.parent) == before
    done = quick(cwd, f"resume={held.path}", torch=False)
    assert error_line(done).startswith(f"error: resume: the run in '{held.path}' has finished")
    assert contents(held.path.parent) == before


def test_nor_by_a_program_of_the_user(held, tmp_path):
    before = contents(held.path)
    with pytest.raises(ConfigError, match=r"folder: .* holds a run already"):
        run_trial(compose([*DEBUG, f"output_dir={tmp_path}"]), folder=held.path)
    assert contents(held.path) == before


def test_an_unfinished_run_is_continued_by_the_command_that_the_refusal_names(tmp_path, upload_process):
    class Stop(Exception): ...

    def report(epoch, metrics):
        raise Stop

    cfg = compose([*DEBUG, f"output_dir={tmp_path}"])
    with pytest.raises(Stop):
        run_trial(cfg, report, folder=tmp_path / "it", upload_process=upload_process)
    with pytest.raises(ConfigError, match=f"continue it with:  python -m sweep.run resume={tmp_path}/it$"):
        run_trial(cfg, folder=tmp_path / "it", upload_process=upload_process)
    cfg.resume = str(tmp_path / "it")
    assert run_trial(cfg, upload_process=upload_process).n_epochs == 2


# Studies, comparisons, range tests


@pytest.mark.parametrize(
    "name", ["config.yaml", "best.yaml", "experiment/best.yaml", "report.html", "plots/a.png", "trials/0/config.yaml"]
)
def test_a_study_overwrites_no_file_of_the_user(name, tmp_path):
    folder = StudyFolder(tmp_path / "outputs" / "studies" / "s")
    file = folder.path / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    before = contents(tmp_path)
    done = quick(tmp_path, "-m", *DEBUG, "hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=1", torch=False)
    line = error_line(done)
    assert line.startswith(f"error: hydra.sweeper.study_name: '{folder.path}' has files that would be overwritten (")
    assert name.partition("/")[0] in line
    assert (done.returncode, contents(tmp_path)) == (2, before)


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_file_of_the_user_where_a_study_would_keep_its_trials_is_left(is_folder, tmp_path):
    storage = StudyFolder(tmp_path / "outputs" / "studies" / "s").storage
    storage.parent.mkdir(parents=True)
    if is_folder:
        (storage / "mine").mkdir(parents=True)
    else:
        storage.write_text("mine\n")
    before = contents(tmp_path)
    done = quick(tmp_path, "-m", *DEBUG, "hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=1", torch=False)
    reason = f"cannot open '{storage}': Is a directory" if is_folder else f"'{storage}' is not an Optuna journal"
    remedy = "move it away, or set another hydra.sweeper.study_name"
    assert error_line(done) == f"error: study: {reason}, and the study would keep its trials there; {remedy}"
    assert (done.returncode, contents(tmp_path)) == (2, before)


def test_a_comparison_overwrites_no_file_of_the_user(tmp_path):
    file = tmp_path / "outputs" / "comparisons" / "c" / "comparison.md"
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    done = quick(tmp_path, *DEBUG, "optimizer=sgd,adam", "compare.name=c", module="sweep.compare", torch=False)
    assert error_line(done).startswith(f"error: compare.name: '{file.parent}' has files that would be overwritten (")
    assert (done.returncode, file.read_text()) == (2, "mine")
    assert not list(tmp_path.glob("outputs/studies/*"))


@pytest.mark.parametrize("name", ["losses.csv", "run.log"])
def test_a_range_test_overwrites_no_file_of_the_user(name, mine):
    (mine / name).write_text("mine")
    before = contents(mine)
    done = quick(mine, "hydra.run.dir=.", module="sweep.lr_range", torch=False)
    assert error_line(done).startswith(f"error: hydra.run.dir: '{mine}' has files that would be overwritten ({name}")
    assert (done.returncode, contents(mine)) == (2, before)


def test_an_empty_folder_takes_no_name_and_a_link_does(tmp_path):
    (tmp_path / "empty").mkdir()
    refuse_existing("key", tmp_path, [tmp_path / "empty", tmp_path / "none"])
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="link"):
        refuse_existing("key", tmp_path, [tmp_path / "link"])
