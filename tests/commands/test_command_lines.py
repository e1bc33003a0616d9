"""Odd command lines and config files of one's own: each is one line and exit status 2, never a traceback."""

import functools
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import error_line, quick, run

from sweep import report, sync

quickly = functools.partial(quick, torch=False)

ODD = {
    "a list of options": (["experiment=[1,2]"], "experiment"),
    "a list for a group": (["trainer=[1]"], "trainer"),
    "a number for the logging": (["hydra.verbose=1.5"], "hydra.hydra_logging"),
    "a folder of options that is not there": (["hydra.searchpath=[file:///nope]"], "hydra.searchpath"),
    "no such root": (["--config-name", "nope"], "--config-name"),
    "no such folder of roots": (["--config-path", "nope"], "--config-path"),
    "no such folder": (["--config-dir", "nope"], "--config-dir"),
    "an unknown mode": (["hydra.mode=x"], "hydra.mode"),
    "a number for the mode": (["hydra.mode=1"], "hydra.mode"),
    "a text for folders of options": (["hydra.searchpath=x"], "hydra.searchpath"),
    "a variable for an option": (["split=${oc.env:HOME}"], "split"),
    "infinity": (["seed=1e999"], "seed"),
    "a dict for a number": (["seed={a:1}"], "seed"),
    "an option of another package": (["+optimizer@x=adam"], "x"),
    "a group left out": (["~scheduler"], "scheduler: needs a _target_; choose an option such as scheduler=constant"),
    "a target left out": (["~optimizer._target_"], "optimizer"),
    "a cycle": (["trainer.seed=${trainer.seed}"], "trainer.seed"),
    "a variable that is not set": (["trainer.epochs=${oc.env:NOPE}"], "trainer.epochs: needs the environment variable"),
    "a file for a folder": (["hydra.run.dir=/dev/null"], "hydra.run.dir: '/dev/null' is a file"),
    "sweep: a file above a folder": (
        ["-m", "hydra/sweeper=basic", "hydra.sweep.dir=/dev/null/${now:%Y}"],
        "hydra.sweep.dir: '/dev/null' is a file",
    ),
    "a reference to nothing": (["seed=${nope}"], "seed: refers to 'nope', which is not a key"),
    "no resolver": (["seed=${nope:1}"], "seed: has no resolver 'nope'"),
    "a choice of nothing": (["-m", "optimizer.lr=choice()"], "optimizer.lr"),
    "nothing but a sign": (["="], "config"),
    "a value of nothing": (["=3"], "config: an override has no key"),
    "study: values of nothing": (["-m", "=glob(*)"], "config: an override has no key"),
    "a long text": (["trainer.epochs=" + "x" * 5000], "trainer.epochs"),
    "a line break in a text": (['from_study="a\nerror: b"'], "from_study"),
    "a line break in a path": (['resume="a\nerror: b"'], "resume"),
    "an option that is none": (["--no\x1b[31mpe"], "command line"),
    "no kind of config": (["--cfg", "foo"], "command line"),
    "a part that the config lacks": (["--cfg", "job", "-p", "nope"], "--package"),
    "a part that is null": (["--cfg", "job", "-p", "resume"], "--package"),
    "a parent folder": (["optimizer=../nope"], ".."),
    "study: a glob in a range": (["-m", "+search.seed='glob(*)'"], "search.seed"),
    "study: a list for a group": (["-m", "optimizer=[1,2]"], "optimizer"),
    "study: a number for a sampler": (["-m", "hydra.sweeper.sampler=1"], "hydra.sweeper.sampler"),
    "study: a number for the sweeper": (["-m", "hydra.sweeper=1"], "hydra.sweeper"),
    "study: texts for bounds": (["-m", "optimizer.lr=interval(a,b)"], "optimizer.lr"),
    "study: bounds the other way round": (["-m", "optimizer.lr=interval(1,0)"], "optimizer.lr"),
    "study: no database": (["-m", "hydra.sweeper.storage=nope://"], "hydra.sweeper.storage"),
    "study: a database in no folder": (["-m", "hydra.sweeper.storage=sqlite:///nope/x.db"], "hydra.sweeper.storage"),
    "study: a file in no folder": (["-m", "hydra.sweeper.storage=nope/x.log"], "hydra.sweeper.storage"),
    "study: no number": (["-m", "hydra.sweeper.timeout=nan"], "hydra.sweeper.timeout"),
    "study: infinitely many": (["-m", "hydra.sweeper.n_trials=1e999"], "hydra.sweeper.n_trials"),
    "study: a text to enqueue": (["-m", "hydra.sweeper.enqueue=1"], "hydra.sweeper.enqueue"),
    "study: a dict to optimise": (["-m", "hydra.sweeper.objective={a:1}"], "hydra.sweeper.objective"),
}


@pytest.mark.process
@pytest.mark.parametrize("odd", ODD)
def test_an_odd_command_line_is_one_line_that_names_its_key(odd: str, tmp_path: Path):
    arguments, key = ODD[odd]
    done = quickly(tmp_path, *arguments)
    assert error_line(done).startswith(f"error: {key}{':' if ':' not in key else ''}")
    assert done.returncode == 2
    assert list(tmp_path.glob("outputs/*/*")) == []  # no folder either
    assert not (tmp_path / "nope").exists()


FILES = {
    "empty": (b"", "experiment: 'experiment/own.yaml' is taken for keys below experiment"),
    "one number": (b"3\n", "experiment/own.yaml': Invalid loaded object type: int"),
    "latin-1": ("a: größe\n".encode("latin-1"), "experiment/own.yaml': byte 6 is not UTF-8; save it in UTF-8"),
    "nested too deep": (b"a: " + b"[" * 2000 + b"]" * 2000, "experiment/own.yaml': maximum recursion depth exceeded"),
    "a number too long": (b"# @package _global_\nseed: " + b"9" * 5000, "experiment/own.yaml': Exceeds the limit"),
    "a bomb": (
        "".join(f"k{i}: &k{i} [{','.join([f'*k{i - 1}' if i else 'x'] * 10)}]\n" for i in range(6)).encode(),
        "experiment: YAML node expansion exceeds",
    ),
    "a tag that runs code": (
        b"a: !!python/object/apply:os.system ['touch pwned']\n",
        "experiment: could not determine",
    ),
    "a key twice": (b"# @package _global_\nseed: 1\nseed: 2\n", "found duplicate key seed"),
    "defaults of two keys": (b"defaults:\n  - {a: b, c: d}\n", "config: In experiment/own: Too many keys"),
    "logging of no version": (
        b"# @package _global_\nhydra: {job_logging: {version: 7}}\n",
        "hydra.job_logging: Unsupp",
    ),
    "logging at no level": (
        b"# @package _global_\nhydra: {job_logging: {root: {level: NOPE}}}\n",
        "hydra.job_logging: Unable to configure root logger: Unknown level: 'NOPE'",
    ),
    "logging by a program": (
        b"# @package _global_\nhydra: {job_logging: {handlers: {console: {(): os.system}}}}\n",
        "hydra.job_logging.handlers.console.(): 'os.system'",
    ),
}


@pytest.mark.process
@pytest.mark.parametrize("file", FILES)
def test_an_odd_file_of_ones_own_is_one_line(file: str, tmp_path: Path):
    content, says = FILES[file]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_bytes(content)
    done = quickly(tmp_path, "--config-dir", ".", "experiment=own", "trainer.epochs=0")
    assert says in error_line(done)
    assert done.returncode == 2
    assert not (tmp_path / "pwned").exists()


_KEYS = st.sampled_from(
    (
        *("seed", "trainer", "trainer.epochs", "optimizer", "optimizer.lr", "model.widths", "split.val", "experiment"),
        *("hydra", "hydra.run.dir", "hydra.sweeper", "hydra/sweeper", "search", "+search.seed", "where", "data", ""),
        *("~optimizer", "~seed", "+x", "++seed", "optimizer@x", "tracking.uri", "resume", "from_study", "output_dir"),
    )
)
_VALUES = st.one_of(
    st.sampled_from(
        ["", "null", "[]", "{}", "[1]", "{a:1}", "nan", "1e999", "glob(*)", "interval(1,0)", "1,2", "${x}"]
    ),
    st.sampled_from(["${", "'", "choice()", "range(0)", "-1", "true", "a b", "\\", "é", "../x", "/", "x" * 300]),
    st.text(alphabet="ab1=,[]{}()'\"$.*@~+ \n\x1b", max_size=8),
)


@pytest.mark.process
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.lists(st.tuples(_KEYS, _VALUES), min_size=1, max_size=2), many=st.booleans())
def test_no_command_line_ends_in_a_traceback(tmp_path: Path, drawn: list[tuple[str, str]], many: bool):
    overrides = [f"{key}={value}" if value else key for key, value in drawn]
    last = ["hydra.sweeper.dry_run=true"] if many else []
    done = quickly(tmp_path, *["-m"] * many, *overrides, "trainer.epochs=0", *last)  # refused, if by nothing else
    assert "Traceback" not in done.stderr
    assert done.returncode == 2, done.stderr
    assert error_line(done).startswith("error: ")


@pytest.mark.process
def test_a_config_that_is_shown_is_escaped(tmp_path: Path):
    done = quickly(tmp_path, "--cfg", "job", 'experiment_name="x\u202ey"')
    assert "experiment_name: x\\u202ey\n" in done.stdout


@pytest.mark.process
@pytest.mark.parametrize(
    "given", [["--config-dir", "~/x"], ['hydra.searchpath=["~/x"]'], ['hydra.searchpath=["file://~/x"]']]
)
def test_a_folder_of_options_may_be_in_the_home_directory(given: list[str], tmp_path: Path):
    (tmp_path / "x" / "model").mkdir(parents=True)
    (tmp_path / "x" / "model" / "mine.yaml").write_text("_target_: sweep.models.MLP\nwidths: [8]\n")
    done = quickly(tmp_path, *given, "model=mine", "--cfg", "job", "-p", "model.widths", HOME=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "# @package model.widths\n- 8\n", "")


@pytest.mark.process
def test_a_list_for_a_group_is_told_what_works(tmp_path: Path):
    line = error_line(quickly(tmp_path, "experiment=[1,2]"))
    assert line.startswith("error: experiment: no option '[1,2]'; choose one of: ")


@pytest.mark.process
@pytest.mark.parametrize("module", ["run", "compare", "lr_range", "sync", "report"])
def test_a_folder_that_is_gone_and_bytes_that_are_no_text_are_one_line(module: str, tmp_path: Path):
    command = [sys.executable, "-c", "import os, runpy, sys; os.rmdir(os.getcwd()); runpy.run_module(sys.argv.pop(1), "]
    command[-1] += "run_name='__main__', alter_sys=True)"
    gone = tmp_path / "gone"
    for arguments, says in (([b"\xff"], "is not in UTF-8"), ([b"x"], "the current folder does not exist any more")):
        gone.mkdir()
        done = run(gone, *arguments, command=(*command, f"sweep.{module}"))
        assert says in error_line(done)
        assert done.returncode == 2


@pytest.mark.process
def test_the_locale_is_blamed_for_utf_8_that_it_cannot_read(tmp_path: Path):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for argument, says in (("größe".encode(), "cannot be read in this locale"), (b"gr\xf6", "is not in UTF-8")):
        done = run(tmp_path, argument, command=(sys.executable, "-m", "sweep.report"), **ascii_only)
        assert says in error_line(done)
        assert done.returncode == 2


@pytest.mark.process
@pytest.mark.parametrize(
    ("module", "arguments", "key"),
    [
        ("compare", ["optimizer=sgd,adam", "compare.over=1"], "compare.over"),
        ("compare", ["optimizer=sgd,adam", "compare.name=../x"], "compare.name"),
        ("compare", ["--config-name", "nope"], "--config-name"),
        ("lr_range", ["scheduler=[1]"], "scheduler"),
        ("lr_range", ["resume=x"], "resume"),
        ("sync", ["nope"], "output_dir"),
        ("sync", ["/dev/null"], "output_dir"),
        ("report", ["../x"], "study"),
        ("report", [""], "study"),
    ],
)
def test_the_other_commands_too(module: str, arguments: list[str], key: str, tmp_path: Path):
    done = quickly(tmp_path, *arguments, module=f"sweep.{module}")
    assert error_line(done).startswith(f"error: {key}: ")
    assert done.returncode == 2


_ARGUMENTS = st.one_of(
    st.sampled_from(
        ["", "x" * 300, "x" * 5000, "../x", "/nope", ".", "/dev/null", "--nope", "--uri", "--storage", "-o"]
    ),
    st.sampled_from(
        ["--trials", "--output-dir", "a\nerror: b", "1e3", "9" * 5000, "~nope", "\0", "\ud800", "é", "nope://x", "--"]
    ),
    st.text(st.characters(exclude_characters="/"), max_size=4).filter(lambda text: not text.startswith("-h")),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.lists(_ARGUMENTS, min_size=1, max_size=4))
def test_neither_does_one_of_sync_or_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], drawn: list[str]
):
    """In a folder without a run."""
    monkeypatch.chdir(tmp_path)
    for module in (sync, report):
        status, printed = module.main(drawn), capsys.readouterr()
        assert list(tmp_path.iterdir()) == []
        if status == 0:  # there is nothing to be sent
            assert printed.out.startswith("0 of 0 tracked runs")
            continue
        assert status == 2
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1


@pytest.mark.process
def test_folders_are_named_after_the_options_that_were_trained(tmp_path: Path):
    """Also where an option is in a subfolder, and where a study's best is trained again, as the study says how."""
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / "sub" / "wide-2.yaml").write_text("_target_: sweep.models.MLP\nwidths: [8]\n")
    shared = ("--config-dir", ".", "experiment=debug", "tracking=off", "scheduler=constant", "model=sub/wide-2")
    done = quick(tmp_path, "-m", *shared, "optimizer=sgd", "hydra.sweeper.n_trials=1")
    assert done.returncode == 0, done.stderr
    (study,) = (tmp_path / "outputs" / "studies").iterdir()
    assert study.name.startswith("sgd-constant-sub-wide-2-noisy_sine")
    (printed,) = [line for line in done.stdout.splitlines() if line.startswith("Train it again:")]
    done = quick(tmp_path, *shlex.split(printed.partition(":")[2])[3:])
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs" / "runs").iterdir()
    assert run.name.endswith("_sgd-constant-sub-wide-2")
    assert (run / "best.pt").is_file()
