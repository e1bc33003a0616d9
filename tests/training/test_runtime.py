"""sweep/training/runtime.py: whether a model fits its data, and how many threads it gets."""

import pytest
import torch
from torch import nn

from sweep.models import MLP
from sweep.tasks import LanguageModel, Regression
from sweep.training.checks import check_model
from sweep.training.runtime import pick_device, reproducible, set_threads
from sweep.utils.errors import ConfigError

TASK = Regression(nn.MSELoss(), {}, torch.zeros(1), torch.ones(1))
BATCH = torch.zeros(16, 3)


class Squeezed(nn.Module):
    """The usual slip: (B,) instead of (B, 1), which a loss would broadcast to (B, B)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=1)


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Squeezed(), r"returned \(16,\) for a batch of 16; the data need \(16, 1\)"),
        (Pair(), "returned tuple"),
        (nn.Linear(4, 1), r"cannot take a batch of shape \(16, 3\)"),
        (nn.Linear(3, 2), r"returned \(16, 2\)"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused(model: nn.Module, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        check_model(model, (BATCH, torch.zeros(len(BATCH), 1)), TASK)
    assert caught.value.key == "model"


def test_tokens_for_a_model_without_an_embedding_are_refused_in_plain_words() -> None:
    task = LanguageModel(nn.CrossEntropyLoss(), {}, 7)
    batch = torch.zeros(16, 5, dtype=torch.int64), torch.zeros(16, 5, dtype=torch.int64)
    with pytest.raises(ConfigError) as caught:
        check_model(MLP(5, 7), batch, task)
    assert str(caught.value) == (
        "model: cannot take whole numbers (a batch of shape (16, 5)) and has no embedding; for tokens, choose "
        "model=transformer; for other data, make them floating-point numbers"
    )
    with pytest.raises(ConfigError, match=r"index out of range"):  # a model for tokens keeps torch's words
        check_model(nn.Embedding(3, 7), (batch[0] + 5, batch[1]), task)


def test_a_lazy_model_gets_its_shapes() -> None:
    model = nn.LazyLinear(1)
    check_model(model, (BATCH, torch.zeros(len(BATCH), 1)), TASK)
    assert model.weight.shape == (1, 3)


@pytest.fixture
def _two_threads():
    with reproducible(torch.device("cpu")):
        torch.set_num_threads(2)
        yield


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize(
    ("asked", "width", "given"),
    [(None, 16, 1), (None, 1024, 2), (1, 1024, 1), (2, 16, 2)],
    ids=["small", "large", "one for a large one", "two for a small one"],
)
def test_a_small_model_gets_one_thread_unless_told(asked: int | None, width: int, given: int) -> None:
    set_threads(asked, MLP(3, 1, widths=[width, width]), BATCH)
    assert torch.get_num_threads() == given


def test_a_device_that_is_not_here_is_named() -> None:
    with pytest.raises(ConfigError, match="cuda:99") as caught:
        pick_device("cuda:99")
    assert caught.value.key == "trainer.device"
