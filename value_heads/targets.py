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


def cd_q(expected_next: Tensor, rewards: Tensor, ended: Tensor) -> Tensor:
    """Return the CD-Q target of Q(s, z): the expectation over the token after it, or the reward.

    sum_z' p(z'|s z) Q(s z, z') where the response goes on, and r(y) where z ended it. No gradient
    flows through it. Controlled Decoding (arXiv 2310.17022), CD-Q, equation 5.

    Args:
        expected_next: float [N, G], the expectation at the state behind z; unread where ended.
        rewards: float [N, G], of the finished response that each transition is from.
        ended: bool [N], whether z ended the response by itself; a cut at a length limit does not.

    Returns:
        float32 [N, G].

    Raises:
        ValueError: the shapes do not agree, or `ended` is not boolean.
    """
    if expected_next.shape != rewards.shape or ended.shape != rewards.shape[:1]:
        raise ValueError(
            "expected_next, rewards and ended must be [N, G], [N, G] and [N], got "
            f"{list(expected_next.shape)}, {list(rewards.shape)} and {list(ended.shape)}"
        )
    if ended.dtype != torch.bool:
        raise ValueError(f"ended must be bool, got {ended.dtype}")
    return torch.where(ended[:, None], rewards, expected_next.detach()).float()
