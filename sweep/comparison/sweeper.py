"""`hydra/sweeper=compare`: the Hydra plug-in behind `python -m sweep.compare`. It is light to import, for `--help`."""

from sweep.search.settings import settings_of
from sweep.study.sweeper import StudySweeper


class CompareSweeper(StudySweeper):
    """Runs a comparison. Its arguments are the keys of conf/hydra/sweeper/compare.yaml."""

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that the comparison still lacks, and write and print its report.

        Args:
            arguments: the overrides of the command line, without those of Hydra's own keys.

        Raises:
            ConfigError: the comparison cannot be run. Nothing is stored then.
            NothingToCompare, Interrupted: see `Comparison.run`.
        """
        assert self.hydra_context is not None
        assert self.config is not None
        settings_of(self.config)  # check the settings before Optuna is loaded
        from sweep.comparison.comparison import Comparison
        from sweep.storage.quiet import quiet_optuna
        from sweep.study.spec import make_root

        with quiet_optuna():
            Comparison(make_root(self.hydra_context, self.config), arguments).run()
