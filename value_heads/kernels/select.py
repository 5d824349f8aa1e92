"""Selection among the candidates of each group, all groups in one launch: a Triton kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sizes import power_of_2


@triton.jit
def _select_kernel(scores, stride, counts, strengths, uniforms, chosen, BLOCK: tl.constexpr):
    """One group."""
    group = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    mask = k < tl.load(counts + group)
    score = tl.load(scores + group * stride + k, mask=mask, other=float("-inf"))
    strength = tl.load(strengths + group)
    top = tl.max(score, 0)
    taken = tl.min(tl.where(score == top, k, BLOCK - 1), 0)  # the first drawn of equal ones
    if strength > 0:
        cumulative = tl.cumsum(tl.exp((score - top) / strength), 0)
        passed = tl.load(uniforms + group) * tl.max(cumulative, 0)
        last = tl.max(tl.where(score > float("-inf"), k, 0), 0)
        taken = tl.minimum(tl.sum((cumulative <= passed).to(tl.int32), 0), last)
    tl.store(chosen + group, taken.to(tl.int64))


def select(scores: Tensor, counts: Tensor, strengths: Tensor, uniforms: Tensor) -> Tensor:
    """As `reference.select`, of float32 scores with contiguous rows."""
    groups, most = scores.shape
    chosen = torch.empty(groups, dtype=torch.int64, device=scores.device)
    block = power_of_2(most)
    _select_kernel[(groups,)](
        scores,
        scores.stride(0),
        counts,
        strengths,
        uniforms,
        chosen,
        BLOCK=block,
        enable_fp_fusion=False,  # a product is compared, as the reference compares it
    )
    return chosen
