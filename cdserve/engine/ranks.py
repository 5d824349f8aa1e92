"""Data-parallel ranks: engines that share requests, each with a KV cache of its own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_OPTION = "data_parallel_rank"


class Ranks:
    """Keeps a request's candidates on one rank, whose prefix cache has what they go on from.

    vLLM would spread them over all ranks, and each would read the prefix for itself.

    Args:
        count: ranks that requests may go to; with one there is nothing to choose.
    """

    def __init__(self, count: int) -> None:
        self._candidates = [0] * count
        self._ranks = list(range(count))
        """Those that were chosen longest ago come first."""

    @classmethod
    def of(cls, parallel_config: Any) -> "Ranks":
        """Those of vLLM's configuration that this server sends requests to."""
        local = parallel_config.local_engines_only
        config = parallel_config
        return cls(config.data_parallel_size_local if local else config.data_parallel_size)

    @contextmanager
    def held(self, options: Mapping[str, Any], candidates: int) -> Iterator[Mapping[str, Any]]:
        """The options of the request's candidates, with a rank while it lasts.

        It is the one with the fewest candidates so far, unless the client named one itself.
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
