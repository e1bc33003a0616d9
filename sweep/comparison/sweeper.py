"""`hydra/sweeper=compare`: the Hydra plugin behind `python -m sweep.compare`. Light to import, for `--help`."""

from sweep.search.settings import settings_of
from sweep.study.sweeper import StudySweeper


class CompareSweeper(StudySweeper):
    """Runs the studies of a comparison; its arguments are the keys of conf/hydra/sweeper/compare.yaml."""

    def sweep(self, arguments: list[str]) -> None:
        """Runs what the comparison lacks, and reports. Raises ConfigError before anything is stored."""
        assert self.hydra_context is not None
        assert self.config is not None
        settings_of(self.config)  # refuses what is wrong, before Optuna is loaded
        from sweep.comparison.comparison import Comparison
        from sweep.storage.quiet import quiet_optuna
        from sweep.study.spec import make_root

        with quiet_optuna():
            Comparison(make_root(self.hydra_context, self.config), arguments).run()
