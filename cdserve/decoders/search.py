"""The search: sample K blocks of M tokens, score each prefix, select one, repeat.

Blockwise controlled decoding (arXiv 2310.17022, section 4). With M = ∞ the first decision is the
last one, and it is best-of-n.
"""

from collections.abc import AsyncGenerator

from cdserve.decoders.candidate import Decision, Proposal
from cdserve.decoders.selection import Select


async def search(
    proposal: Proposal, *, k: int, m: int | None, select: Select
) -> AsyncGenerator[Decision, None]:
    """Decodes one response, a decision at a time, until an accepted candidate has ended.

    Args:
        proposal: draws candidates, scores them, keeps the accepted prefix.
        k: candidates a decision.
        m: block length in tokens; None is ∞.
        select: the selection rule.
    """
    while True:
        candidates = await proposal.sample(k, m)
        scores = await proposal.score(candidates)
        totals = [score.total for score in scores]
        chosen = select.choose(totals)
        candidate = candidates[chosen]
        proposal.accept(candidate)
        yield Decision(
            candidates=candidates,
            scores=scores,
            chosen=chosen,
            tie=totals.count(max(totals)) > 1,
            kl_bound=select.kl_bound(k),
            kl_estimate=select.kl_estimate(totals, candidate.cumulative_logprob),
            kl_estimator=select.kl_estimator(candidate.cumulative_logprob),
        )
        if candidate.finish_reason is not None:
            return
