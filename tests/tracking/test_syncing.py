"""sweep/tracking/syncing.py from Python; that each record arrives once is tested in test_mlflow.py."""

from pathlib import Path

import pytest

import sweep
from sweep.tracking.folders import RunFolder


def test_a_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sweep.ConfigError, match="output_dir: no folder"):
        sweep.sync_outputs(tmp_path / "nowhere")


def test_a_run_that_lost_its_record_counts_as_tracked_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = RunFolder(tmp_path / "runs" / "lost")
    lost.path.mkdir(parents=True)
    lost.sync_state.write_text("{}")
    found = sweep.sync_outputs(tmp_path)
    assert (found.folder, found.n_tracked, found.n_sent, found.n_refused) == (tmp_path, 1, 0, 0)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"'{lost.journal}' is damaged (it is gone, but the run has begun)" in line
