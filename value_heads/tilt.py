"""Tilting next-token distributions by values, and what that costs in KL."""

import torch
from torch import Tensor


def centred_on_top_k(
    delta: Tensor, logits: Tensor, top_k: Tensor, most: int | None = None
) -> Tensor:
    """Return `delta` less its mean over the k most likely tokens there, and 0 elsewhere.

    Inside the top k the ratios are those of the whole tilt; the rest counts as average. Value
    Augmented Sampling (arXiv 2405.06639).

    Args:
        delta, logits: float [N, |V|].
        top_k: int64 [N], k of each row, from 0 to |V|; the result is 0 where it is 0.
        most: the largest k. Without it the host waits for the device to tell it.
    """
    most = int(top_k.max()) if most is None else most
    ids = logits.topk(most, dim=-1).indices
    inside = torch.arange(most, device=ids.device) < top_k[:, None]
    chosen = delta.gather(-1, ids).where(inside, 0.0)
    centred = (chosen - chosen.sum(-1, keepdim=True) / top_k[:, None]).where(inside, 0.0)
    return torch.zeros_like(delta).scatter(-1, ids, centred)


def kl(logits: Tensor, changed: Tensor, temperature: Tensor | None = None) -> Tensor:
    """Return KL(softmax(changed / T) || softmax(logits / T)) of each row, in nats, float32 [N].

    Exact, from the two distributions. A row at T = 0, greedy decoding, is taken at T = 1, since
    two point masses have no finite divergence to speak of. NaN where a logit is NaN.

    Args:
        logits, changed: float [N, |V|]; where `changed` is -inf its probability is 0.
        temperature: float [N]; None for 1 in all rows.
    """
    if temperature is not None:
        divisor = torch.where(temperature > 0, temperature, 1.0)[:, None]
        logits, changed = logits / divisor, changed / divisor
    lowest = torch.finfo(logits.dtype).min / 4  # times 0 it is 0, unlike -inf
    log_p = logits.log_softmax(-1).clamp_(min=lowest)
    log_pi = changed.log_softmax(-1).clamp_(min=lowest)
    found: Tensor = torch.linalg.vecdot(log_pi.exp(), log_pi.sub_(log_p))
    return found.clamp_(min=0)
