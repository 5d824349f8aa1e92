"""Training targets of the value at every prefix. Rewards come at the end, without discount."""

import math

import torch
from torch import Tensor


def monte_carlo(rewards: Tensor, response_mask: Tensor) -> Tensor:
    """Return the Monte Carlo target of every prefix: the final reward of its rollout.

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
    _check_rollouts(rewards, response_mask)
    return rewards.float()[:, None, :] * response_mask[:, :, None]


def mean_over_rollouts(rewards: Tensor, beta: float | None = None) -> Tensor:
    """Return the target of a prefix from the rewards of m continuations.

    The target is the mean for a value of kind "mean", and beta log mean exp(r / beta) for kind
    "soft". IVO and Math-Shepherd use the mean (m-rollout Monte Carlo).

    Args:
        rewards: float [..., m, G].
        beta: None for the mean; else positive, in reward units per nat.

    Returns:
        float [..., G].

    Raises:
        ValueError: beta is not positive.
    """
    if beta is None:
        return rewards.mean(-2)
    _check_beta(beta)
    return beta * (torch.logsumexp(rewards / beta, -2) - math.log(rewards.shape[-2]))


def lambda_returns(
    values: Tensor, rewards: Tensor, response_mask: Tensor, ended: Tensor, lam: float
) -> Tensor:
    """Return the TD(lambda) target of every prefix, which is GAE's return A + V.

    G_t = (1 - lambda) V(s_{t+1}) + lambda G_{t+1}, and at the last token r if it ended the
    response, else V there: a cut at a length limit is not an end, and V is the expected reward of
    the continuation. No gradient flows through it. lambda = 0 is TD(0), lambda = 1 Monte Carlo.
    GAE (arXiv 1506.02438), equation 16, undiscounted; Value Augmented Sampling (arXiv 2405.06639)
    uses lambda = 0.95.

    Args:
        values: float [B, T, G], V(s_t) with s_t the prefix up to and including token t.
        rewards: float [B, G]; unread where the response did not end.
        response_mask: bool [B, T], True at the response's tokens, which are adjacent.
        ended: bool [B], whether the last token ended the response by itself.
        lam: lambda, from 0 to 1.

    Returns:
        float32 [B, T, G]; 0 where the mask is False.

    Raises:
        ValueError: the shapes do not agree, a mask is not boolean, or lambda is outside [0, 1].
    """
    _check_rollouts(rewards, response_mask)
    if values.shape != (*response_mask.shape, rewards.shape[1]):
        raise ValueError(
            f"values must be {[*response_mask.shape, rewards.shape[1]]}, got {list(values.shape)}"
        )
    if ended.dtype != torch.bool or ended.shape != rewards.shape[:1]:
        raise ValueError(f"ended must be bool [{len(rewards)}], got {ended.dtype} {[*ended.shape]}")
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must be from 0 to 1, got {lam}")
    values, rewards = values.detach().float(), rewards.float()
    returns = torch.zeros_like(values)
    width = values.shape[1]
    for t in reversed(range(width)):
        last = response_mask[:, t] & (
            ~response_mask[:, t + 1] if t + 1 < width else torch.ones_like(ended)
        )
        at_end = torch.where(ended[:, None], rewards, values[:, t])
        following = (
            (1 - lam) * values[:, t + 1] + lam * returns[:, t + 1] if t + 1 < width else at_end
        )
        returns[:, t] = torch.where(last[:, None], at_end, following)
    return returns * response_mask[:, :, None]


def cd_q(expected_next: Tensor, rewards: Tensor, ended: Tensor) -> Tensor:
    """Return the CD-Q target of Q(s, z): the expectation over the next token, or the reward.

    sum_z' p(z'|s z) Q(s z, z') if the response goes on, r(y) if z ended it. For soft values,
    `soft_expectation` takes the place of the sum. No gradient flows through it.
    Controlled Decoding (arXiv 2310.17022), CD-Q, equation 5.

    Args:
        expected_next: float [N, G], expectation at the state after z; unread where ended.
        rewards: float [N, G], rewards of the finished response of each transition.
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


def soft_expectation(values: Tensor, log_p: Tensor, beta: float) -> Tensor:
    """Return beta log sum_z p(z|s) exp(Q(s, z) / beta), the soft value of s.

    Args:
        values: float [N, G, |V|], Q of every next token.
        log_p: float [N, |V|], log-probabilities of the base model.
        beta: positive, in reward units per nat.

    Returns:
        float [N, G].

    Raises:
        ValueError: beta is not positive.
    """
    _check_beta(beta)
    return beta * torch.logsumexp(values / beta + log_p[:, None], -1)


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")


def _check_rollouts(rewards: Tensor, response_mask: Tensor) -> None:
    if rewards.ndim != 2 or response_mask.ndim != 2 or len(rewards) != len(response_mask):
        raise ValueError(
            "rewards and response_mask must be [B, G] and [B, T], got "
            f"{list(rewards.shape)} and {list(response_mask.shape)}"
        )
    if response_mask.dtype != torch.bool:
        raise ValueError(f"response_mask must be bool, got {response_mask.dtype}")
