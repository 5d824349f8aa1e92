"""Charging by the kernel, against a plain walk along each path."""

import torch
from hypothesis import given, settings

from value_heads.kernels import PathKL, operations

from .cases import DEVICE
from .charging import BUDGETS, LAUNCHES, SLOTS, Launch, check, rounded_up_to_the_limit


@settings(deadline=None, max_examples=60)
@given(BUDGETS, LAUNCHES)
def test_charge_kernel_matches_a_walk_along_each_path(
    budgets: list[float], launches: list[Launch]
) -> None:
    check(operations(True), budgets, launches)


def test_charge_kernel_compares_the_limit_in_float64() -> None:
    budget, nats = rounded_up_to_the_limit()
    check(operations(True), [budget] * SLOTS, [{0: (1, nats)}, {0: (2, nats)}])


def test_charge_kernel_of_several_blocks_matches_the_reference() -> None:
    count = 300
    slots, tokens = torch.randperm(400)[:count].to(DEVICE), torch.arange(count, device=DEVICE)
    nats, budgets = torch.rand(count, device=DEVICE), torch.rand(count, device=DEVICE)
    fused, plain = PathKL.zeros(400, DEVICE), PathKL.zeros(400, DEVICE)
    for step in range(3):
        found = operations(True).charge(fused, slots, tokens + step, nats, budgets)
        expected = operations(False).charge(plain, slots, tokens + step, nats, budgets)
        for made, true in zip(found, expected, strict=True):
            assert torch.equal(made, true)
    assert torch.equal(fused.spent, plain.spent)
    assert torch.equal(fused.step_unsteered, plain.step_unsteered)
