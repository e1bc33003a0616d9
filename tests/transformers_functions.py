"""A training function that uses Transformers, for the tests."""

from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from sweep import Trial
from sweep.integrations.transformers import TrialCallback


class Sentences(Dataset[dict[str, torch.Tensor]]):
    """Eight sequences of four tokens, and whether the first is odd."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([place, 1, 2, 3]), "labels": torch.tensor(place % 2)}


def train(cfg: object, trial: Trial, **settings: Any) -> dict[str, float]:
    """A tiny model with dropout, for three epochs of four batches, which are shuffled."""
    callback = TrialCallback()  # the current trial, which is the one that is given
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = BertForSequenceClassification(BertConfig(vocab_size=8, **sizes))
    given: dict[str, Any] = {
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "num_train_epochs": 3,
        "learning_rate": 1e-2,
    }
    given |= {"per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none", "disable_tqdm": True} | settings
    arguments = TrainingArguments(str(trial.folder / "trainer"), **given)
    trainer = Trainer(model, arguments, train_dataset=Sentences(), eval_dataset=Sentences(), callbacks=[callback])
    trainer.train(resume_from_checkpoint=callback.checkpoint)
    return {"test/loss": trainer.evaluate(metric_key_prefix="test")["test_loss"]}


def evaluates_by_steps(cfg: object, trial: Trial) -> dict[str, float]:
    return train(cfg, trial, eval_strategy="steps", eval_steps=5)
