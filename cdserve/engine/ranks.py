"""Placement of requests on data-parallel ranks, each of which has its own KV cache."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_OPTION = "data_parallel_rank"


class Ranks:
    """Keeps the candidates of a request on one rank, so that they share its prefix cache.

    vLLM would spread them over all ranks, and each rank would compute the prefix.

    Args:
        count: number of ranks that this server uses.
    """

    def __init__(self, count: int) -> None:
        self._candidates = [0] * count
        self._ranks = list(range(count))
        """Ranks, least recently chosen first."""

    @classmethod
    def of(cls, parallel_config: Any) -> "Ranks":
        """The ranks that this server sends requests to."""
        local = parallel_config.local_engines_only
        config = parallel_config
        return cls(config.data_parallel_size_local if local else config.data_parallel_size)

    @contextmanager
    def held(self, options: Mapping[str, Any], candidates: int) -> Iterator[Mapping[str, Any]]:
        """Places a request on the rank with the fewest candidates, unless the client chose one.

        Yields:
            The options with the rank.
        """
        if len(self._ranks) == 1 or options.get(_OPTION) is not None:
            yield options
            return
        rank = min(self._ranks, key=self._candidates.__getitem__)
        self._ranks.remove(rank)
        self._ranks.append(rank)
        self._candidates[rank] += candidates
        try:
            yield {**options, _OPTION: rank}
        finally:
            self._candidates[rank] -= candidates
