"""`python -m sweep.run`: the Hydra entry point."""

import atexit
import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sweep.compose import config_error
from sweep.config import CONF_DIR, register, with_choices
from sweep.errors import ConfigError, Interrupted, SweepError

if TYPE_CHECKING:
    from sweep.record.follow import Follower


def run(cfg: DictConfig) -> float:
    """One Hydra job: trains the trial and returns its objective, which sweepers minimise."""
    from sweep.record.summary import print_summary
    from sweep.trial import run_trial

    job = HydraConfig.get()
    overrides = list(job.overrides.task)
    if cfg.resume is not None:
        _refuse_changes(overrides)
    outcome = run_trial(
        with_choices(cfg, job.runtime.choices),
        folder=job.runtime.output_dir,
        follower=_follower(Path(cfg.output_dir).absolute()),
        overrides=overrides,
        live=sys.stderr.isatty(),
    )
    print_summary(outcome)
    return outcome.value


def main() -> None:
    """Runs Hydra's command line. Exit status: 0; 1 a failed training; 2 a bad config; 128 + n stopped by signal n."""
    show_tracebacks = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors come here, where they become one line
    register()
    try:
        hydra.main(config_path=str(CONF_DIR), config_name="config", execution_whitelist=())(run)()
    except (SweepError, HydraException, OmegaConfBaseException) as error:
        if show_tracebacks:
            raise
        told = error if isinstance(error, SweepError) else config_error(error)
        print(f"error: {told}", file=sys.stderr)
        sys.exit(told.exit_status)
    except Interrupted as stop:
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:
        sys.exit(130)


@functools.cache
def _follower(output_dir: Path) -> "Follower":
    """One helper for all trials of this process, in a sweep too."""
    from sweep.record.follow import Follower

    follower = Follower(output_dir / "mirror.log")
    atexit.register(follower.close)
    return follower


def _refuse_changes(overrides: list[str]) -> None:
    changes = [o for o in overrides if not o.startswith("resume=")]
    if changes:
        raise ConfigError(
            "resume", f"continues a run as it was configured; leave out '{changes[0]}', or start a new run"
        )


if __name__ == "__main__":
    main()
