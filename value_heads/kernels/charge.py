"""Charging the KL of steps to the budgets of their requests: a Triton kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import MARGIN, PathKL
from .sizes import cdiv

_BLOCK = 128
"""Rows in one program."""
_MARGIN = tl.constexpr(MARGIN)


@triton.jit(
    do_not_specialize=["count"],
    do_not_specialize_on_alignment=["slots", "tokens", "nats", "budgets"],
)
def _charge_kernel(
    spent,  # float64 [S], updated: nats of the steps before the last
    step,  # float64 [S], updated: nats of the last step
    unsteered,  # int32 [S], updated: unsteered steps before the last
    step_unsteered,  # int32 [S], updated: 1 if the last step is unsteered
    at,  # int64 [S], updated: tokens of the last step's prefix; -1 before the first
    slots,  # int64 [n], slot of each row
    tokens,  # int64 [n], tokens of the prefix of this step
    nats,  # float32 [n], KL of this step
    budgets,  # float32 [n], nats; +inf for none
    so_far,  # float32 [n, 2] contiguous, written: nats of the path, and its unsteered steps
    over,  # bool [n], written: whether this step exceeds the budget
    count,  # n
    BLOCK: tl.constexpr,  # rows of one program
):
    """Charge this step to the paths of a block of rows; grid (row blocks)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    slot = tl.load(slots + i, mask=mask, other=0)
    token = tl.load(tokens + i, mask=mask, other=0)
    kl = tl.load(nats + i, mask=mask, other=0.0).to(tl.float64)
    budget = tl.load(budgets + i, mask=mask, other=0.0).to(tl.float64)
    before = tl.load(spent + slot, mask=mask, other=0.0)
    skipped = tl.load(unsteered + slot, mask=mask, other=0)
    new = tl.load(at + slot, mask=mask, other=0) != token
    # A step of another prefix follows the last one; a step of the same prefix replaces it.
    before += tl.where(new, tl.load(step + slot, mask=mask, other=0.0), 0.0)
    skipped += tl.where(new, tl.load(step_unsteered + slot, mask=mask, other=0), 0)
    beyond = before + kl > budget * _MARGIN  # False of NaN
    kl = tl.where(beyond, 0.0, kl)
    tl.store(spent + slot, before, mask=mask)
    tl.store(step + slot, kl, mask=mask)
    tl.store(unsteered + slot, skipped, mask=mask)
    tl.store(step_unsteered + slot, beyond.to(tl.int32), mask=mask)
    tl.store(at + slot, token, mask=mask)
    tl.store(so_far + 2 * i, (before + kl).to(tl.float32), mask=mask)
    tl.store(so_far + 2 * i + 1, (skipped + beyond.to(tl.int32)).to(tl.float32), mask=mask)
    tl.store(over + i, beyond, mask=mask)


def charge(
    paths: PathKL, slots: Tensor, tokens: Tensor, nats: Tensor, budgets: Tensor
) -> tuple[Tensor, Tensor]:
    """Do as `reference.charge`, in one launch."""
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
            enable_fp_fusion=False,  # the budget is compared as the reference rounds it
        )
    return so_far, over
