"""`hydra/sweeper=compare`: the Hydra plugin behind `python -m sweep.compare`. Light to import, for `--help`."""

from sweep.search.settings import settings_of
from sweep.study.sweeper import StudySweeper


class CompareSweeper(StudySweeper):
    """Runs the studies of a comparison; its arguments are the keys of conf/hydra/sweeper/compare.yaml."""

    def sweep(self, arguments: list[str]) -> None:
        """Runs what the comparison lacks, and reports. Raises ConfigError before anything is stored."""
        assert self.hydra_context is not None
        assert self.config is not None
        settings = settings_of(self.config)
        from sweep.comparison.comparison import Comparison
        from sweep.study.spec import make_root

        Comparison(make_root(self.hydra_context, self.config, settings.n_jobs), settings, arguments).run()
