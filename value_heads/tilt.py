"""Tilts of next-token distributions by values, and their KL."""

import torch
from torch import Tensor


def centred_on_top_k(
    delta: Tensor, logits: Tensor, top_k: Tensor, most: int | None = None
) -> Tensor:
    """Return `delta` minus its mean over the k most likely tokens there, and 0 elsewhere.

    Within the top k, the ratios are those of the whole tilt; other tokens count as average. Value
    Augmented Sampling (arXiv 2405.06639).

    Args:
        delta, logits: float [N, |V|].
        top_k: int64 [N], k of each row, from 0 to |V|; the result is 0 where it is 0.
        most: the largest k; None makes the host wait for the device.
    """
    most = int(top_k.max()) if most is None else most
    ids = logits.topk(most, dim=-1).indices
    inside = torch.arange(most, device=ids.device) < top_k[:, None]
    chosen = delta.gather(-1, ids).where(inside, 0.0)
    centred = (chosen - chosen.sum(-1, keepdim=True) / top_k[:, None]).where(inside, 0.0)
    return torch.zeros_like(delta).scatter(-1, ids, centred)


def kl(logits: Tensor, changed: Tensor, temperature: Tensor | None = None) -> Tensor:
    """Return KL(softmax(changed / T) || softmax(logits / T)) of each row, in nats, float32 [N].

    Exact, from the two distributions. T = 0, greedy decoding, counts as T = 1, since the divergence
    of two point masses is 0 or infinite. NaN where a logit is NaN.

    Args:
        logits, changed: float [N, |V|]; where `changed` is -inf its probability is 0.
        temperature: float [N]; None for 1 in all rows.
    """
    if temperature is not None:
        divisor = torch.where(temperature > 0, temperature, 1.0)[:, None]
        logits, changed = logits / divisor, changed / divisor
    lowest = torch.finfo(logits.dtype).min / 4  # unlike -inf, its product with 0 is 0
    log_p = logits.log_softmax(-1).clamp_(min=lowest)
    log_pi = changed.log_softmax(-1).clamp_(min=lowest)
    nats: Tensor = torch.linalg.vecdot(log_pi.exp(), log_pi.sub_(log_p))
    return nats.clamp_(min=0)
