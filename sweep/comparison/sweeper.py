"""`hydra/sweeper=compare`: the Hydra plug-in behind `python -m sweep.compare`. It is light to import, for `--help`."""

from collections.abc import Sequence

from hydra.types import TaskFunction

from sweep.search.settings import settings_of
from sweep.study.sweeper import StudySweeper


class CompareSweeper(StudySweeper):
    """Runs a comparison: of sweep's own trials, or of another application's.

    Its arguments are the keys of conf/hydra/sweeper/compare.yaml; those for another application are in
    study/search_path/hydra/sweeper/compare.yaml. `sweep` raises what `Comparison.run` does, and returns nothing.
    """

    def _sweep(self, arguments: Sequence[str], task: TaskFunction | None) -> None:
        """Run the trials that the comparison still lacks, and write and print its report."""
        assert self.hydra_context is not None
        assert self.config is not None
        settings_of(self.config)  # check the settings before Optuna is loaded
        from sweep.comparison.comparison import Comparison
        from sweep.storage.quiet import quiet_optuna
        from sweep.study.spec import make_root

        with quiet_optuna():
            Comparison(make_root(self.hydra_context, self.config, task=task), arguments).run()
