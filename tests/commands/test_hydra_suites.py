"""Hydra's own suite for launchers, with the launchers that a study runs on; and that Hydra finds the sweeper.

Hydra's suite for sweepers does not apply: it wants one Hydra job for every combination, of any application's config.
"""

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.test_utils.launcher_common_tests import LauncherTestSuite

from sweep.study.sweeper import StudySweeper

pytestmark = pytest.mark.process  # commands, servers, a browser


@pytest.fixture(scope="module", autouse=True)
def plugins() -> None:
    """Found once, before Hydra's fixtures remember and restore what is there."""
    Plugins.instance()


def test_hydra_finds_the_sweeper_by_itself():
    assert StudySweeper in Plugins.instance().discover(Sweeper)


@pytest.mark.filterwarnings("default")  # the suite's own
@pytest.mark.parametrize(("launcher_name", "overrides"), [("basic", []), ("joblib", [])])
class TestLaunchers(LauncherTestSuite):
    pass
