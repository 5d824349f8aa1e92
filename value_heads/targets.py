"""Training targets of the value at every prefix."""

import torch
from torch import Tensor


def monte_carlo(rewards: Tensor, response_mask: Tensor) -> Tensor:
    """Return the Monte Carlo target of every prefix: the reward its rollout ended with.

    Averaged over rollouts of the base model it is V*(s) = E_p[r | s], so the squared error has
    V* as its minimiser. Controlled Decoding (arXiv 2310.17022), CD-FUDGE, equation 4.

    Args:
        rewards: float [B, G], raw rewards of the finished sequences.
        response_mask: bool [B, T], True at every response token, the end token included, and
            False at prompt and padding.

    Returns:
        float32 [B, T, G]; 0 where the mask is False.

    Raises:
        ValueError: the shapes do not agree, or the mask is not boolean.
    """
    if rewards.ndim != 2 or response_mask.ndim != 2 or len(rewards) != len(response_mask):
        raise ValueError(
            "rewards and response_mask must be [B, G] and [B, T], got "
            f"{list(rewards.shape)} and {list(response_mask.shape)}"
        )
    if response_mask.dtype != torch.bool:
        raise ValueError(f"response_mask must be bool, got {response_mask.dtype}")
    return rewards.float()[:, None, :] * response_mask[:, :, None]
