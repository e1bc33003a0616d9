"""Config files are parsed once in a process, and again once they are edited."""

import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from sweep.config.composition import load_multirun, own_hydra
from sweep.config.hydra_files import remember_files

LONG_AGO = (0.0, 0.0)  # when a file was read and modified


def test_files_are_parsed_once_and_no_config_shares_values_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    load = OmegaConf.load

    def noted(file: Any) -> Any:
        parsed.append(Path(getattr(file, "name", "")).name)
        return load(file)

    (tmp_path / "optimizer").mkdir()
    for name in ("first", "second"):
        option = tmp_path / "optimizer" / f"{name}.yaml"
        option.write_text("_target_: torch.optim.SGD\nlr: 0.5\n")
        os.utime(option, LONG_AGO)
    own = f"hydra.searchpath=[file://{tmp_path}]"
    with own_hydra() as loader:
        config = load_multirun(loader, "config", [own, "optimizer=first"])
        config.trainer.epochs = 77
        config.optimizer.lr = 77.0
        monkeypatch.setattr(OmegaConf, "load", staticmethod(noted))
        again = load_multirun(loader, "config", [own, "optimizer=first"])
        assert not {"first.yaml", "config.yaml"} & {*parsed}
        load_multirun(loader, "config", [own, "optimizer=second"])
    assert parsed.count("second.yaml") == 1
    assert again.trainer.epochs != 77
    assert again.optimizer.lr == 0.5


@pytest.mark.parametrize("is_recent", [False, True])
def test_an_edited_file_is_parsed_again(is_recent: bool, tmp_path: Path) -> None:
    """Also if its size is the same, and its time is set back or too coarse."""
    option = tmp_path / "optimizer" / "mine.yaml"
    option.parent.mkdir()
    remember_files()
    given = [f"hydra.searchpath=[file://{tmp_path}]", "optimizer=mine"]
    with own_hydra() as loader:
        for lr in (0.25, 0.75):
            option.write_text(f"_target_: torch.optim.SGD\nlr: {lr}\n")
            if not is_recent:
                os.utime(option, LONG_AGO)
            assert load_multirun(loader, "config", given).optimizer.lr == lr
        option.unlink()
        with pytest.raises(Exception, match="mine"):
            load_multirun(loader, "config", given)
