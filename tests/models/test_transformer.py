import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sweep.models import Transformer


def made(seed: int = 0, **changes: Any) -> Transformer:
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {"in_shape": (6,), "out_features": 11, "n_tokens": 11, "width": 16, "n_layers": 2}
    return Transformer(**arguments | changes)


def spread(model: Transformer) -> Transformer:
    """With weights so large that every position's attention shows."""
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.5)
    return model


def test_outputs_are_logits_for_each_position():
    assert made()(torch.randint(11, (3, 6))).shape == (3, 6, 11)
    assert made(out_features=4)(torch.randint(11, (3, 6))).shape == (3, 6, 4)


def test_outputs_depend_on_the_tokens_up_to_their_position_only():
    model, tokens = spread(made()), torch.randint(11, (2, 6))
    changed = tokens.clone()
    changed[:, 3] = (tokens[:, 3] + 1) % 11
    differs = (model(changed) - model(tokens)).abs().amax((0, 2)) > 1e-4
    assert differs.tolist() == [False, False, False, True, True, True]


def test_the_order_of_earlier_tokens_matters():
    model = spread(made(n_layers=1))
    one, other = model(torch.tensor([[1, 2, 3]])), model(torch.tensor([[2, 1, 3]]))
    assert (one[0, 2] - other[0, 2]).abs().max() > 1e-3


def test_attention_is_that_of_torchs_own_layer():
    model = spread(made(n_layers=1, n_heads=4))
    x = torch.randn(2, 6, 16)
    attention: Any = model.blocks[0].attention
    reference = nn.MultiheadAttention(16, 4, bias=False, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(attention.qkv.weight)
        reference.out_proj.weight.copy_(attention.out.weight)
    causal = nn.Transformer.generate_square_subsequent_mask(6)
    assert_close(attention(x), reference(x, x, x, attn_mask=causal, need_weights=False)[0])


def test_initial_weights_are_small_and_follow_the_seed():
    model = made(width=64, n_layers=3)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            expected = 0.02 / math.sqrt(6) if name.endswith("out.weight") else 0.02
            assert weight.std().item() == pytest.approx(expected, rel=0.15), name
    assert not any("bias" in name for name, _ in model.named_parameters())
    tokens = torch.arange(6)[None]
    assert torch.equal(made(1)(tokens), made(1)(tokens))
    assert not torch.equal(made(1)(tokens), made(2)(tokens))


def test_dropout_acts_in_training_only():
    model, tokens = made(dropout=0.5), torch.randint(11, (2, 6))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_tokens": None}, "needs sequences of token ids, such as those of data=text; try model=mlp"),
        ({"in_shape": (3, 8, 8)}, "needs sequences of token ids"),
        ({"width": 10, "n_heads": 4}, "n_heads is 4, which does not divide the width 10"),
        ({"n_layers": 0}, "n_layers must be >= 1, got 0"),
        ({"n_heads": 0}, "n_heads must be >= 1, got 0"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_a_transformer_that_cannot_be_made_says_why(changes, says: str):
    with pytest.raises(ValueError, match=says):
        made(**changes)
