"""Scores of blocks by the reward of a whole answer: DeAL's look-ahead (arXiv 2402.06147)."""

from collections.abc import Sequence
from dataclasses import replace

from cdserve.decoders.candidate import Prefix, Proposal, Score, final


async def scores_ahead(
    proposal: Proposal, tokens: int, prefixes: Sequence[Prefix]
) -> Sequence[Score]:
    """Scores of prefixes, each of them as a whole response.

    An unfinished prefix is followed by its rollout, the most likely continuation. A rollout that
    does not end within ``tokens`` is scored like a response that ``max_tokens`` cuts there.

    Args:
        proposal: rolls out and scores.
        tokens: length of a rollout at most.
        prefixes: prefixes of at least one block.
    """
    unfinished = [prefix for prefix in prefixes if prefix[-1].finish_reason is None]
    rollouts = iter(await proposal.roll_out(unfinished, tokens) if unfinished else ())
    whole: list[Prefix] = []
    lengths: list[int] = []
    for prefix in prefixes:
        if prefix[-1].finish_reason is None:
            rollout = final(next(rollouts))
            whole.append((*prefix, rollout))
            lengths.append(len(rollout.token_ids))
        else:
            whole.append(prefix)
            lengths.append(0)
    scores = await proposal.score(whole)
    return [
        replace(score, rollout_tokens=length) for score, length in zip(scores, lengths, strict=True)
    ]


def rollout_tokens(max_tokens: int, block: int, lookahead: int) -> int:
    """Most tokens of the rollouts of a response of ``max_tokens`` tokens, one after each block.

    The sum of min(lookahead, max_tokens - i block) over the ends of blocks i = 1, 2, ... before the
    end of the response.

    Args:
        max_tokens: length of the response in tokens.
        block: length of a block in tokens, at least.
        lookahead: length of a rollout at most.
    """
    blocks = (max_tokens - 1) // block
    full = min(blocks, max(0, max_tokens - lookahead) // block)
    rest = blocks - full
    return full * lookahead + rest * max_tokens - block * (full + 1 + blocks) * rest // 2
