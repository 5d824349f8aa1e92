"""Diverse verifier tree search: several independent searches, the best of whose ends is returned.

Hugging Face's search-and-learn, "Scaling test-time compute with open models" (2024).
"""

from collections.abc import Sequence

from cdserve.decoders.candidate import Candidate, Prefix
from cdserve.decoders.selection import Beam


class Subtrees(Beam):
    """Keeps the best prefix of each of S subtrees, which never replace each other.

    A subtree is what continues one of the S blocks kept first. Each of the S groups of equal size
    that the first draw consists of has one.

    The bound is that of S beams, log S + B log K.

    Args:
        subtrees: S.
    """

    def __init__(self, subtrees: int) -> None:
        super().__init__(subtrees)
        self._subtrees = subtrees
        self._first: list[Candidate] = []
        """First block of each subtree; empty before the first decision."""

    def keep(self, scores: Sequence[float], prefixes: Sequence[Prefix]) -> Sequence[int]:
        """Index of the highest score of each subtree; of equal scores, the first subtree's."""
        subtrees = self._subtrees_of(prefixes)
        best: dict[int, int] = {}
        for i, subtree in enumerate(subtrees):
            if subtree not in best or scores[i] > scores[best[subtree]]:
                best[subtree] = i
        if not self._first:
            self._first = [prefixes[best[subtree]][0] for subtree in sorted(best)]
        return sorted(best.values(), key=lambda i: (-scores[i], subtrees[i]))

    def _subtrees_of(self, prefixes: Sequence[Prefix]) -> list[int]:
        """Number of the subtree of each prefix."""
        if not self._first:
            size = -(-len(prefixes) // self._subtrees)
            return [i // size for i in range(len(prefixes))]
        numbers = {id(block): number for number, block in enumerate(self._first)}
        return [numbers[id(prefix[0])] for prefix in prefixes]
