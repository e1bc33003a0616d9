"""A function as the plain operations that it consists of."""

from typing import Any

import pytest
import torch
from conftest import make_loop
from packs import rules_of, tensor_task
from torch import Tensor
from torch.func import vmap

from sweep.training.packed.parameters import FlatParameters
from sweep.training.packed.tracing import TracedFunction
from sweep.training.packed.update import Update


def drawn(layout: FlatParameters, n_rows: int, n_samples: int, has_weights: bool) -> tuple[Any, ...]:
    """Weights, nothing that is not trained, and a batch for each row."""
    weights = torch.randn(n_rows, layout.size)
    of_samples = (torch.rand(n_rows, n_samples),) if has_weights else ()
    return weights, {}, torch.randn(n_rows, n_samples, 1), torch.randn(n_rows, n_samples, 1), *of_samples


@pytest.mark.parametrize("has_weights", [False, True], ids=["plain", "weighted"])
def test_a_trace_of_gradients_serves_any_number_of_rows_and_samples(has_weights: bool) -> None:
    """Also where they were equal to each other, and to the width of a layer, as it was made; but for one sample.

    With weights of samples, torch traces a squared error for the numbers that it sees.
    """
    loop = make_loop("model.widths=[8]")
    rules = rules_of(loop)
    layout = FlatParameters(loop.model, {*dict(loop.model.named_parameters())}, rules.names)
    update = Update(loop.model, layout, tensor_task(loop).loss_of, rules.rules, loop.trainer)
    traced = TracedFunction(update.gradients, worth=0)
    for n_rows, n_samples in ((8, 8), (5, 8), (8, 3), (2, 1), (64, 8)):
        arguments = drawn(layout, n_rows, n_samples, has_weights)
        for _ in range(2):  # the second time by the trace alone
            for one, other in zip(traced((n_rows, n_samples), *arguments), update.gradients(*arguments), strict=True):
                torch.testing.assert_close(one, other)
        is_served = n_rows == n_samples == 8 if has_weights else n_samples > 1
        assert traced.serves((n_rows, n_samples), *arguments) == is_served
    assert traced.problem is None


def test_a_trace_that_is_wrong_for_other_sizes_is_not_used_for_them() -> None:
    def summed(w: Tensor, extra: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return (vmap(lambda w, x: w * x.sum())(w, x) * len(w),)  # `len` is a number to what traces it

    traced = TracedFunction(summed, worth=0)
    for n_rows in (3, 4, 4):
        arguments = torch.randn(n_rows, 2), {}, torch.randn(n_rows, 5), torch.randn(n_rows, 5)
        torch.testing.assert_close(traced((n_rows,), *arguments), summed(*arguments))
        assert traced.serves((n_rows,), *arguments) == (n_rows == 3)


@pytest.mark.slow
@pytest.mark.parametrize("is_compiled", [False, True])
def test_nested_tensors_of_any_size_come_back_as_the_function_gives_them(is_compiled: bool) -> None:
    calls = []

    def shifted(given: dict[str, list[Tensor]], x: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
        calls.append(x.shape)
        return x.mean(), {name: [part + x.mean(dim=1) for part in parts] for name, parts in given.items()}

    traced = TracedFunction(shifted, is_compiled=is_compiled)
    for sizes in ((4, 4), (3, 4), (4, 7), (3, 7)):  # equal ones at first
        given, x = {"": [torch.randn(sizes[0])], "m": [torch.randn(sizes[0])] * 2}, torch.randn(9, *sizes)[5]
        torch.testing.assert_close(traced(sizes, given, x), shifted(given, x))
    assert len(calls) == 1 + 4, "it is traced once"


def test_what_cannot_be_traced_is_called_as_it_is() -> None:
    def by_value(w: Tensor, extra: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return (w * 2 if bool(x.sum() > 0) else w,)

    traced = TracedFunction(by_value, worth=0)
    arguments = torch.ones(3, 2), {}, torch.ones(3, 5), torch.ones(3, 5)
    assert torch.equal(traced((3, 5), *arguments)[0], torch.full((3, 2), 2.0))
    assert traced.problem is not None
