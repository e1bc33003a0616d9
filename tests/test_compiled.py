"""A function that is compiled once, for all sizes that its trace holds for."""

import torch
from torch import Tensor

from sweep.train.compiled import Compiled


def test_nested_tensors_of_any_size_come_back_as_the_function_gives_them() -> None:
    calls = []

    def shifted(given: dict[str, list[Tensor]], x: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
        calls.append(x.shape)
        return x.mean(), {name: [part + x.mean(dim=1) for part in parts] for name, parts in given.items()}

    compiled = Compiled(shifted)
    for sizes in ((4, 4), (3, 4), (4, 7), (3, 7)):  # equal ones at first
        given, x = {"": [torch.randn(sizes[0])], "m": [torch.randn(sizes[0])] * 2}, torch.randn(9, *sizes)[5]
        mean, changed = compiled(sizes, given, x)
        expected_mean, expected = shifted(given, x)
        torch.testing.assert_close((mean, changed), (expected_mean, expected))
    assert len(calls) == 1 + 4, "it is traced once"


def test_sizes_that_the_trace_took_for_constants_are_left_to_the_function() -> None:
    def summed(x: Tensor) -> list[Tensor]:
        return [x * len(x)]  # `len` is a number to what traces it

    compiled = Compiled(summed)
    for n in (3, 4, 3):
        x = torch.randn(n, 2)
        assert torch.equal(compiled((n,), x)[0], x * n)
