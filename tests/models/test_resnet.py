from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sweep.models import ResNet


def made(**changes: Any) -> ResNet:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"in_shape": (3, 9, 8), "out_features": 5, "widths": (4, 6), "n_blocks": 2}
    return ResNet(**arguments | changes)


@pytest.mark.parametrize("in_shape", [(3, 9, 8), (1, 8, 8), (2, 1, 1)])
def test_a_resnet_takes_images_of_any_size(in_shape: tuple[int, ...]):
    assert made(in_shape=in_shape)(torch.randn(7, *in_shape)).shape == (7, 5)


def test_widths_and_blocks_are_those_given():
    model = made(widths=[4, 8, 12], n_blocks=3)
    x, shapes = model.stem(torch.randn(1, 3, 16, 16)), []
    for block in model.blocks:
        x = block(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(4, 16, 16)] * 3 + [(8, 8, 8)] * 3 + [(12, 4, 4)] * 3


def test_group_norm_leaves_the_samples_of_a_batch_apart_and_batch_norm_does_not():
    images = torch.randn(4, 3, 9, 8)
    group, batch = made(), made(norm="batch")
    assert_close(group(images)[:1], group(images[:1]), rtol=1e-4, atol=1e-5)
    assert (batch(images)[:1] - batch(images[:1])).abs().max() > 1e-2
    assert {type(m) for m in batch.modules() if "Norm" in type(m).__name__} == {nn.BatchNorm2d}


def test_at_first_a_block_of_equal_shapes_is_the_identity():
    x = torch.rand(2, 4, 5, 5)
    assert torch.equal(made().blocks[0](x), x)
    assert not torch.equal(made().blocks[2](x)[..., :3, :3], x[..., :3, :3])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"in_shape": (10,)}, r"needs images .* shape \(10,\); try model=mlp"),
        ({"widths": []}, "widths must name at least one stage"),
        ({"widths": [4, 0]}, r"widths must be >= 1 each, got \[4, 0\]"),
        ({"n_blocks": 0}, "n_blocks must be >= 1, got 0"),
    ],
)
def test_a_resnet_that_cannot_be_made_says_why(changes, says: str):
    with pytest.raises(ValueError, match=says):
        made(**changes)
