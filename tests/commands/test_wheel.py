"""The built wheel, installed somewhere and used from somewhere else: it must bring along all that it needs."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from processes import RUN, environment, only_run, recorded, run

pytestmark = pytest.mark.process  # commands, servers, a browser

SOURCE = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", str(folder), str(SOURCE))
    (built,) = folder.glob("hydra_sweep-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    _pip("install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    return target


def _pip(*arguments: str) -> None:
    done = subprocess.run([*PIP, *arguments], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_has_every_module_and_option_the_command_and_the_mark_of_a_typed_package(wheel):
    archive = zipfile.ZipFile(wheel)
    names = set(archive.namelist())
    options = {path.relative_to(SOURCE).as_posix() for path in (SOURCE / "conf").rglob("*.yaml")}
    assert "conf/optimizer/adam.yaml" in options
    assert {f"sweep/{option}" for option in options} <= names
    assert "sweep/py.typed" in names
    assert {f"sweep/figures/page.{kind}" for kind in ("html", "css", "js")} <= names
    modules = {path.relative_to(SOURCE).as_posix() for path in (SOURCE / "sweep").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    scripts = archive.read(entry_points).decode()
    for command in ("run", "compare", "lr_range", "report", "export", "sync"):
        assert f"sweep-{command.replace('_', '-')} = sweep.{command}:main" in scripts


def test_an_installed_wheel_runs_from_any_directory_with_its_own_options(installed, tmp_path):
    """The target's sweep and conf/ are used, not those of the source tree that the tests run in."""
    option = tmp_path / "my conf" / "optimizer" / "mine.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("_target_: torch.optim.SGD\nlr: 0.125\n")
    (installed / "sweep" / "conf" / "model" / "only_here.yaml").write_text("_target_: sweep.models.Linear\n")
    done = run(
        tmp_path,
        *("--config-dir", "my conf", "optimizer=mine", "model=only_here", "experiment=debug", "tracking=off"),
        command=(str(installed / "bin" / "sweep-run"),),
        PYTHONPATH=str(installed),
    )
    assert done.returncode == 0, done.stderr
    assert len(recorded(only_run(tmp_path))["val/loss"][0]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"my conf", "outputs"}


def test_an_installed_wheel_has_its_module_below_the_target(installed, tmp_path):
    code = "import sweep, sweep.config.options; print(sweep.__file__); print(sweep.config.options.CONF_DIR)"
    done = run(tmp_path, "-c", code, command=(sys.executable,), PYTHONPATH=str(installed))
    module, conf = done.stdout.splitlines()
    assert Path(module) == installed / "sweep" / "__init__.py"
    assert Path(conf) == installed / "sweep" / "conf"


def test_the_help_of_an_installed_wheel_lists_the_options(installed, tmp_path):
    done = run(tmp_path, "--help", command=RUN, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert "optimizer: adagrad, adam, adamw" in done.stdout
