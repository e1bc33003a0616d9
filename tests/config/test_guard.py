"""sweep/config/guard.py: the text of a config must not run programs, nor write outside its run's folder."""

from pathlib import Path

import pytest
from processes import error_line, quick

from sweep import ConfigError, compose
from sweep.config.guard import guard_hydra

COMMANDS = (
    ("sweep.run",),
    ("sweep.run", "-m", "optimizer=sgd,adam"),
    ("sweep.run", "-m", "hydra/sweeper=basic", "optimizer=sgd,adam"),
    ("sweep.compare", "optimizer=sgd,adam"),
    ("sweep.lr_range",),
)


def experiment(folder: Path, hydra: str) -> Path:
    """A folder of options with the experiment `evil`, which sets `hydra`."""
    (folder / "experiment").mkdir()
    (folder / "experiment" / "evil.yaml").write_text(f"# @package _global_\nhydra: {hydra}\n")
    return folder


def refused_key(folder: Path, hydra: str, *overrides: str) -> str:
    guard_hydra()
    with pytest.raises(ConfigError) as caught:
        compose(["experiment=evil", *overrides], str(experiment(folder, hydra)))
    return caught.value.key


@pytest.mark.parametrize(
    ("hydra", "key"),
    [
        ("{job: {env_set: {PATH: /x}}}", "hydra.job.env_set.PATH"),
        ("{job: {env_set: {OMP_NUM_THREADS: 1, SWEEP_TARGETS: os.*}}}", "hydra.job.env_set.SWEEP_TARGETS"),
        ("{job: {env_copy: [HOME]}}", "hydra.job.env_set.HOME"),
        ("{job: {env_copy: [NOT_SET_ANYWHERE]}}", "hydra.job.env_copy"),
        ("{job: {name: ../x}}", "hydra.job.name"),
        ("{callbacks: {a: {_target_: os.system}}}", "hydra.callbacks.a"),
        ("{output_subdir: ../..}", "hydra.output_subdir"),
        ("{output_subdir: '${oc.env:HOME}'}", "hydra.output_subdir"),
        ("{job_logging: {handlers: {a: {(): os.system}}}}", "hydra.job_logging.handlers.a.()"),
        ("{hydra_logging: {formatters: {a: {class: a.B}}}}", "hydra.hydra_logging.formatters.a.class"),
        ("{job_logging: {handlers: {console: {stream: ext://a.b}}}}", "hydra.job_logging.handlers.console.stream"),
        ("{job_logging: {handlers: {file: {filename: /x}}}}", "hydra.job_logging.handlers.file.filename"),
        (
            "{job_logging: {handlers: {file: {filename: '${hydra.runtime.output_dir}/../x'}}}}",
            "hydra.job_logging.handlers.file.filename",
        ),
        (
            "{job_logging: {handlers: {file: {filename: '${hydra.runtime.output_dir}/.bashrc'}}}}",
            "hydra.job_logging.handlers.file.filename",
        ),
        (
            "{job_logging: {handlers: {file: {filename: '${hydra.runtime.output_dir}/${now:.}./x.log'}}}}",
            "hydra.job_logging.handlers.file.filename",
        ),
        (
            "{job_logging: {handlers: {file: {filename: '${hydra.runtime.output_dir}/thesis.tex'}}}}",
            "hydra.job_logging.handlers.file.filename",
        ),
        ("{job_logging: {handlers: {file: {mode: w}}}}", "hydra.job_logging.handlers.file.mode"),
        ("{job: {name: ..}}", "hydra.job.name"),
        ("{output_subdir: '${now:.}.'}", "hydra.output_subdir"),
        (
            "{hydra_logging: {handlers: {a: {class: logging.FileHandler, filename: x, mode: w}}}}",
            "hydra.hydra_logging.handlers.a.filename",
        ),
    ],
)
def test_text_of_a_config_that_could_run_code_or_write_anywhere_is_refused(tmp_path: Path, hydra: str, key: str):
    assert refused_key(tmp_path, hydra) == key


def test_a_launchers_own_programs_come_from_the_command_line_only(tmp_path: Path):
    slurm = ("hydra/launcher=submitit_slurm",)
    assert refused_key(tmp_path, "{launcher: {setup: [touch /x]}}", *slurm) == "hydra.launcher.setup.0"
    compose([*slurm, "hydra.launcher.setup=[module load cuda]"])


def test_what_a_config_may_say(tmp_path: Path):
    guard_hydra()
    harmless = """
  job: {env_set: {OMP_NUM_THREADS: "1"}}
  output_subdir: .meta
  job_logging: {handlers: {file: {filename: "${hydra.runtime.output_dir}/logs-${hydra.job.name}.txt"}}}
"""
    compose(["experiment=evil"], str(experiment(tmp_path, harmless)))
    compose(["hydra.job_logging.handlers.file.filename=/var/log/mine"])
    compose(["hydra/job_logging=default", "hydra/hydra_logging=none"])


@pytest.mark.process
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_refuses_before_it_does_anything(tmp_path: Path, command: tuple[str, ...]):
    module, *arguments = command
    program = tmp_path / "programs" / "git"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    program.chmod(0o755)
    options = experiment(tmp_path, f"{{job: {{env_set: {{PATH: {program.parent}}}}}}}")
    before = sorted(tmp_path.rglob("*"))
    done = quick(tmp_path, *arguments, "--config-dir", str(options), "experiment=evil", torch=False, module=module)
    assert done.returncode == 2
    assert done.stderr.startswith("error: hydra.job.env_set.PATH: ")
    assert len(done.stderr.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.process
def test_an_option_that_only_some_trials_have_is_refused_too(tmp_path: Path):
    options = experiment(tmp_path, "{job: {env_set: {PATH: /x}}}")
    arguments = ("-m", "--config-dir", str(options), "experiment=debug,evil")
    done = quick(tmp_path, *arguments, torch=False)
    assert (done.returncode, done.stderr.partition(": a config")[0]) == (2, "error: hydra.job.env_set.PATH")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.process
def test_hydras_rerun_of_a_folder_is_refused(tmp_path: Path):
    done = quick(tmp_path, "--experimental-rerun=x", torch=False)
    assert (done.returncode, done.stderr.partition(":")[2].partition(":")[0]) == (2, " --experimental-rerun")


# Log files that the text of a config names


@pytest.mark.process
@pytest.mark.parametrize("command", [("sweep.run",), ("sweep.compare", "optimizer=sgd,adam")], ids=" ".join)
def test_a_log_of_a_command_is_a_new_file(tmp_path: Path, command: tuple[str, ...]):
    module, *arguments = command
    mine = tmp_path / "mine.log"
    mine.write_text("mine")
    handlers = "{f: {class: logging.FileHandler, filename: '${hydra.sweep.dir}/mine.log'}}"
    logging = f"{{version: 1, handlers: {handlers}, root: {{handlers: [f]}}}}"
    options = experiment(tmp_path, f"{{sweep: {{dir: .}}, hydra_logging: {logging}}}")
    done = quick(tmp_path, *arguments, "--config-dir", str(options), "experiment=evil", torch=False, module=module)
    assert error_line(done) == (
        "error: hydra.hydra_logging.handlers.f.filename: './mine.log' is there already; name another file, or set it "
        "on the command line"
    )
    assert (done.returncode, mine.read_text()) == (2, "mine")


@pytest.mark.process
@pytest.mark.parametrize("arguments", [("hydra.run.dir=.",), ("-m", "hydra/sweeper=basic", "hydra.sweep.dir=.")])
def test_so_is_a_log_of_a_job(tmp_path: Path, arguments: tuple[str, ...]):
    mine = tmp_path / "mine.log"
    mine.write_text("mine")
    where = "hydra.sweep.dir" if "-m" in arguments else "hydra.runtime.output_dir"
    options = experiment(tmp_path, f"{{job_logging: {{handlers: {{file: {{filename: '${{{where}}}/mine.log'}}}}}}}}")
    done = quick(
        tmp_path, *arguments, "--config-dir", str(options), "experiment=evil", "trainer.epochs=-1", torch=False
    )
    assert error_line(done).startswith("error: hydra.job_logging.handlers.file.filename: ")
    assert (done.returncode, mine.read_text()) == (2, "mine")
    assert {path.name for path in tmp_path.iterdir()} == {"mine.log", "experiment"}


@pytest.mark.process
def test_jobs_of_a_sweep_may_share_a_log_in_its_folder(tmp_path: Path):
    options = experiment(tmp_path, "{job_logging: {handlers: {file: {filename: '${hydra.sweep.dir}/all.log'}}}}")
    sweep = ("-m", "hydra/sweeper=basic", "hydra.sweep.dir=new", "--config-dir", str(options), "experiment=evil")
    done = quick(tmp_path, *sweep, "seed=0,1", "trainer.epochs=-1", torch=False)
    assert error_line(done).startswith("error: trainer.epochs: ")
    assert (tmp_path / "new" / "all.log").read_text().count("failed: trainer.epochs: ") == 2


@pytest.mark.process
def test_a_folder_may_begin_with_the_home_directory(tmp_path: Path):
    done = quick(tmp_path, "--cfg", "hydra", 'hydra.run.dir="~/x"', torch=False, HOME=str(tmp_path / "home"))
    assert f"dir: {tmp_path}/home/x" in done.stdout


@pytest.mark.process
def test_hydras_own_log_may_be_switched_off(tmp_path: Path):
    done = quick(
        tmp_path, "-m", "hydra/sweeper=basic", "hydra/hydra_logging=disabled", "trainer.epochs=-1", torch=False
    )
    assert error_line(done).startswith("error: trainer.epochs: ")
