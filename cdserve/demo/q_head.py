"""The `sentiment` Q-head: values of every next token, on rollouts of the base model."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from value_heads import (
    FitOptions,
    FitReport,
    HeadConfig,
    QHead,
    Transitions,
    correlation,
    fit_q,
    hash_base,
)
from value_heads.q_training import Method

from .head import reward_of
from .rollouts import Rollout

RANK = 64


def transitions(rollouts: list[Rollout], tokenizer: PreTrainedTokenizerFast) -> Transitions:
    """Return every sampled token of the rollouts with the state before it."""
    rewards = torch.tensor([reward_of(rollout.response, tokenizer) for rollout in rollouts])
    lengths = torch.tensor([len(rollout.response) for rollout in rollouts])
    ended = torch.zeros(int(lengths.sum()), dtype=torch.bool)
    ended[lengths.cumsum(0) - 1] = True
    return Transitions(
        states=torch.cat([torch.cat([r.start[None], r.hidden[:-1]]) for r in rollouts]),
        tokens=torch.cat([torch.tensor(rollout.response) for rollout in rollouts]),
        rewards=rewards.repeat_interleave(lengths)[:, None],
        ended=ended,
    )


def train_q_head(
    base_dir: Path,
    model: LlamaForCausalLM,
    train: Transitions,
    held_out: Transitions,
    method: Method,
    options: FitOptions,
    start: QHead | None = None,
) -> tuple[QHead, FitReport]:
    """Fit a low-rank head, from the weights of `start`, or else from one value for all tokens.

    CD-Q carries what it learns one token back in a step, so it is best begun from a Monte Carlo
    fit.
    """
    torch.manual_seed(options.seed)
    head = QHead(
        HeadConfig(
            architecture="lowrank",
            rewards=("sentiment",),
            hidden_size=train.states.shape[1],
            rank=RANK,
            vocab_size=model.config.vocab_size,
            shift=(float(train.rewards.mean()),),
            scale=(float(train.rewards.std()),),
            base_model="cdserve-demo",
            base_hash=hash_base(base_dir),
        )
    )

    if start is not None:
        head.load_state_dict(start.state_dict())

    @torch.no_grad()
    def base(states: Tensor) -> Tensor:
        p: Tensor = model.lm_head(states).softmax(-1)
        return p

    return head, fit_q(head, train, held_out, base, method, options)


@torch.no_grad()
def measure(head: QHead, test: Transitions) -> dict[str, float]:
    """Return how well Q of the tokens sampled predicts the final reward."""
    values = head.of_token(test.states, test.tokens)[:, 0]
    rewards = test.rewards[:, 0]
    return {
        "correlation": correlation(values, rewards),
        "at_end": correlation(values[test.ended], rewards[test.ended]),
        "half_squared_error": 0.5 * float((values - rewards).square().mean()),
    }
