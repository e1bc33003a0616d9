"""Transformers: report, prune and resume trials that a `transformers.Trainer` trains.

def train(cfg, trial):
    callback = TrialCallback(trial)
    arguments = TrainingArguments(trial.folder / "trainer", eval_strategy="epoch", save_strategy="no")
    trainer = Trainer(model, arguments, train_dataset=..., eval_dataset=..., callbacks=[callback])
    trainer.train(resume_from_checkpoint=callback.checkpoint)
"""

import shutil
from pathlib import Path
from typing import Any

from sweep.integrations.ranks import rank, wait_for_all
from sweep.training.trial import Trial
from sweep.trial.current import current_trial

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    message = "sweep.integrations.transformers needs Transformers:  pip install 'hydra-sweep[transformers]'"
    raise ImportError(message) from error

_STATE = "transformers"  # in the trial's state: the files of the trainer's checkpoint, by path in its folder
_ABOUT_SPEED = ("runtime", "samples_per_second", "steps_per_second")  # ends of names of metrics


class TrialCallback(TrainerCallback):
    """Reports each evaluation to a trial, and saves the trainer's checkpoints through it.

    The step of a report is the epoch, from 1, with `eval_strategy="epoch"`, and otherwise the trainer's `global_step`.
    A checkpoint is saved after an evaluation if one is due. With `save_strategy="no"`, the trainer itself keeps none.

    `Trainer.train` raises what ends the trial. Let it pass.
    """

    def __init__(self, trial: Trial | None = None) -> None:
        """Connect to a trial, by default the current one."""
        self._trial = current_trial() if trial is None else trial
        self._is_training = False
        self._resumed: Path | None = None  # the files of the checkpoint to resume from

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint to resume from, for `Trainer.train`; None in a trial that starts."""
        if self._resumed is None:
            folder = self._trial.folder / f"resumed-{rank()}"
            shutil.rmtree(folder, ignore_errors=True)  # of a process that died
            if (state := self._trial.restore()) is None:
                return None
            for name, data in state[_STATE].items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
            self._resumed = folder
        return str(self._resumed)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Report from here on."""
        self._is_training = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Report no more: another evaluation may be on a test set."""
        self._is_training = False

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Report the metrics of the evaluation, and have a checkpoint saved if one is due."""
        if not self._is_training:
            return
        self._forget_resumed()
        metrics = {
            name: value
            for name, value in more["metrics"].items()
            if isinstance(value, int | float) and name != "epoch" and not name.endswith(_ABOUT_SPEED)
        }
        self._trial.report(_step(args, state), metrics)
        control.should_save = control.should_save or self._trial.should_save

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Save the trainer's checkpoint as the trial's."""
        wait_for_all()  # each rank writes the states of its random generators to the folder
        files: dict[str, bytes] = {}
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            paths = [path for path in folder.rglob("*") if path.is_file()]
            files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
            if args.save_strategy == "no":
                shutil.rmtree(folder)
        self._trial.save(_step(args, state), {_STATE: files})

    def _forget_resumed(self) -> None:
        """Remove the files that the trainer has resumed from."""
        if self._resumed is not None:
            shutil.rmtree(self._resumed)
            self._resumed = None


def _step(args: TrainingArguments, state: TrainerState) -> int:
    return round(state.epoch or 0) if args.eval_strategy == "epoch" else state.global_step
