"""What API server processes want of the slots that they share, and how much each may take."""

from collections.abc import MutableSequence, Sequence


class Demand:
    """One server's place among all: it says what it wants, and reads what the others said.

    Args:
        wanted: of each server candidates, then requests that they belong to; shared memory, of
            which a server writes its own part only.
        index: this server's.
    """

    def __init__(self, wanted: MutableSequence[int], index: int) -> None:
        self._wanted = wanted
        self._index = index

    def tell(self, candidates: int, requests: int) -> None:
        """Says what this server's requests hold and wait for."""
        self._wanted[2 * self._index : 2 * self._index + 2] = [candidates, requests]

    def limit(self, count: int) -> int:
        """How many of ``count`` slots this server may hold now, at least 1."""
        wanted = list(self._wanted)
        # Another server may be between writing the one and the other.
        shares = evenly(count, wanted[::2], [max(1, requests) for requests in wanted[1::2]])
        return max(1, shares[self._index])


def evenly(count: int, candidates: Sequence[int], requests: Sequence[int]) -> list[int]:
    """Max-min fair shares of slots, over servers weighed by their requests.

    Args:
        count: slots.
        candidates: that each server wants slots for.
        requests: of each server; where it wants any, at least 1.
    """
    shares = [0] * len(candidates)
    left, unmet = count, [i for i, wanted in enumerate(candidates) if wanted]
    while unmet:
        total = sum(requests[i] for i in unmet)
        met = [i for i in unmet if candidates[i] * total <= left * requests[i]]
        for i in met or unmet:
            shares[i] = candidates[i] if met else left * requests[i] // total
        if not met:
            for i in unmet[: left - sum(shares[i] for i in unmet)]:  # what rounding has left
                shares[i] += 1
            break
        left -= sum(candidates[i] for i in met)
        unmet = [i for i in unmet if i not in met]
    return shares
