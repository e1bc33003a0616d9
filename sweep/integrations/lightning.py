"""Lightning: report, prune and resume trials that a `lightning.Trainer` trains.

def train(cfg, trial):
    callback = TrialCallback(trial)
    trainer = lightning.Trainer(max_epochs=cfg.trainer.epochs, callbacks=[callback], enable_checkpointing=False)
    trainer.fit(Module(cfg.lr), Data(), ckpt_path=callback.ckpt_path)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweep.integrations.ranks import rank
from sweep.training.checkpoint import random_states, set_random_states
from sweep.training.trial import Trial
from sweep.trial.current import current_trial
from sweep.utils.errors import Interrupted

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    message = "sweep.integrations.lightning needs Lightning:  pip install 'hydra-sweep[lightning]'"
    raise ImportError(message) from error

_STATE = "lightning"  # in the trial's state: the bytes of Lightning's checkpoint


class Stopped(Exception):
    """Ends a training whose trial was asked to stop. Lightning would answer a KeyboardInterrupt with `sys.exit`."""


class TrialCallback(Callback):
    """Reports each validation to a trial, and saves Lightning's checkpoints through it.

    The step of a report is the epoch, from 1. If the Trainer validates within epochs (`val_check_interval`), it is the
    Trainer's `global_step`. A checkpoint is saved at the end of an epoch if one is due.

    `Trainer.fit` raises Pruned if the study prunes the trial, and Stopped if the trial is asked to stop. Let them pass.
    """

    def __init__(self, trial: Trial | None = None) -> None:
        """Connect to a trial, by default the current one."""
        self._trial = current_trial() if trial is None else trial
        self._known: set[str] = set()  # the metrics that there were before a validation
        self._validated: set[str] = set()  # the metrics that validations have added
        self._random: dict[str, Any] | None = None  # the states of the random generators to resume with
        self._restored: Path | None = None

    @property
    def ckpt_path(self) -> Path | None:
        """The checkpoint to resume from, for `Trainer.fit`; None in a trial that starts."""
        if self._restored is None:
            path = self._trial.folder / f"resumed-{rank()}.ckpt"
            path.unlink(missing_ok=True)  # of a process that died
            if (state := self._trial.restore()) is None:
                return None
            self._random = random_states()
            path.write_bytes(state[_STATE])
            self._restored = path
        return self._restored

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw from here on what the trial would have drawn without a break, first the order of the epoch's data."""
        if self._random is not None and self._restored is not None:
            set_random_states(self._random)
            self._restored.unlink(missing_ok=True)
            self._random = self._restored = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note which metrics there are. Those of the last training epoch must not be reported again."""
        self._known = {*trainer.callback_metrics}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the metrics of the validation. Raise Pruned or Stopped if the trial ends here."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validated |= trainer.callback_metrics.keys() - self._known
        metrics = {name: trainer.callback_metrics[name].item() for name in sorted(self._validated)}
        with _stopping():
            self._trial.report(_step(trainer), metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save a checkpoint if one is due. Raise Stopped if the trial was asked to stop."""
        if not self._trial.should_save:
            return
        path = self._trial.folder / "saved.ckpt"
        trainer.save_checkpoint(path)
        data = b""
        if trainer.is_global_zero:  # the process that writes it
            data = path.read_bytes()
            path.unlink()
        with _stopping():
            self._trial.save(_step(trainer), {_STATE: data})


def _step(trainer: Trainer) -> int:
    interval = trainer.val_check_interval
    validates_within = not isinstance(interval, float) or interval < 1
    return trainer.global_step if validates_within else trainer.current_epoch + 1


@contextmanager
def _stopping() -> Iterator[None]:
    try:
        yield
    except Interrupted as stop:
        raise Stopped("the trial was asked to stop") from stop
