"""Links in the folder of a study."""

from pathlib import Path

import pytest

from sweep.utils.errors import ConfigError
from sweep.utils.paths import refuse_links_in


def test_links_are_refused_at_any_depth_but_those_of_submitit(tmp_path: Path) -> None:
    own = tmp_path / "s" / ".submitit"
    own.mkdir(parents=True)
    (own / "submission.sh").symlink_to(own / "7_submission.sh")
    refuse_links_in(tmp_path / "s", "study")
    (own / "submission.sh").unlink()
    own.rmdir()
    for link in (own, tmp_path / "s" / "trials" / "0" / ".submitit"):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(tmp_path)
        with pytest.raises(ConfigError, match="is a link, and links are not followed"):
            refuse_links_in(tmp_path / "s", "study")
        link.unlink()
