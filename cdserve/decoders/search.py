"""The search: sample K blocks of M tokens, score each prefix, select one, repeat.

Blockwise controlled decoding (arXiv 2310.17022, section 4). With M = ∞ the first decision is the
last one, and it is best-of-n. A rule that takes none of the candidates is given more.
"""

from collections.abc import AsyncGenerator, Iterator, Sequence
from itertools import chain, repeat

from cdserve.decoders.candidate import Candidate, Decision, Proposal, Score
from cdserve.decoders.selection import Select


async def search(
    proposal: Proposal, *, k: int | Sequence[int], m: int | None, select: Select
) -> AsyncGenerator[Decision, None]:
    """Decodes one response, a decision at a time, until an accepted candidate has ended.

    Args:
        proposal: draws candidates, scores them, keeps the accepted prefix.
        k: candidates a draw; a sequence is one number a draw, the last repeated.
        m: block length in tokens; None is ∞.
        select: the selection rule.
    """
    counts = _counts(k)
    while True:
        candidates: list[Candidate] = []
        scores: list[Score] = []
        chosen: int | None = None
        while chosen is None:
            drawn = await proposal.sample(next(counts), m)
            candidates += drawn
            scores += await proposal.score(drawn)
            ranks = select.rank(scores)
            chosen = select.choose(ranks)
        candidate = candidates[chosen]
        proposal.accept(candidate)
        yield Decision(
            candidates=candidates,
            scores=scores,
            chosen=chosen,
            tie=ranks.count(max(ranks)) > 1,
            kl_bound=select.kl_bound(len(candidates)),
            kl_estimate=select.kl_estimate(ranks, candidate.cumulative_logprob),
            kl_estimator=select.kl_estimator(candidate.cumulative_logprob),
            accepted=select.accepted(),
        )
        if candidate.finish_reason is not None:
            return


def _counts(k: int | Sequence[int]) -> Iterator[int]:
    schedule = [k] if isinstance(k, int) else k
    return chain(schedule, repeat(schedule[-1]))
