"""Charging steps to the budgets of their requests, all in one launch: a Triton kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import MARGIN, PathKL
from .sizes import cdiv

_BLOCK = 128
_MARGIN = tl.constexpr(MARGIN)


@triton.jit(
    do_not_specialize=["count"],
    do_not_specialize_on_alignment=["slots", "tokens", "nats", "budgets"],
)
def _charge_kernel(
    spent,
    step,
    unsteered,
    step_unsteered,
    at,
    slots,
    tokens,
    nats,
    budgets,
    so_far,
    over,
    count,
    BLOCK: tl.constexpr,
):
    """A block of rows."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    slot = tl.load(slots + i, mask=mask, other=0)
    token = tl.load(tokens + i, mask=mask, other=0)
    kl = tl.load(nats + i, mask=mask, other=0.0).to(tl.float64)
    budget = tl.load(budgets + i, mask=mask, other=0.0).to(tl.float64)
    before = tl.load(spent + slot, mask=mask, other=0.0)
    left = tl.load(unsteered + slot, mask=mask, other=0)
    new = tl.load(at + slot, mask=mask, other=0) != token
    # The step before is charged where this one is another; else this one replaces it.
    before += tl.where(new, tl.load(step + slot, mask=mask, other=0.0), 0.0)
    left += tl.where(new, tl.load(step_unsteered + slot, mask=mask, other=0), 0)
    beyond = before + kl > budget * _MARGIN  # a NaN is not
    kl = tl.where(beyond, 0.0, kl)
    tl.store(spent + slot, before, mask=mask)
    tl.store(step + slot, kl, mask=mask)
    tl.store(unsteered + slot, left, mask=mask)
    tl.store(step_unsteered + slot, beyond.to(tl.int32), mask=mask)
    tl.store(at + slot, token, mask=mask)
    tl.store(so_far + 2 * i, (before + kl).to(tl.float32), mask=mask)
    tl.store(so_far + 2 * i + 1, (left + beyond.to(tl.int32)).to(tl.float32), mask=mask)
    tl.store(over + i, beyond, mask=mask)


def charge(
    paths: PathKL, slots: Tensor, tokens: Tensor, nats: Tensor, budgets: Tensor
) -> tuple[Tensor, Tensor]:
    """As `reference.charge`, in one launch."""
    count = len(slots)
    so_far = torch.empty(count, 2, dtype=torch.float32, device=slots.device)
    over = torch.empty(count, dtype=torch.bool, device=slots.device)
    if count:
        _charge_kernel[(cdiv(count, _BLOCK),)](
            paths.spent,
            paths.step,
            paths.unsteered,
            paths.step_unsteered,
            paths.at,
            slots,
            tokens,
            nats,
            budgets,
            so_far,
            over,
            count,
            BLOCK=_BLOCK,
            enable_fp_fusion=False,  # a product is compared, as the reference compares it
        )
    return so_far, over
