"""The KV of the accepted prefix is not computed again, its unfinished block included."""

import pytest
from openai import OpenAI

from tests.server.served import Served
from tests.server.wire import complete

K, M = 4, 20


@pytest.mark.parametrize("length", [3, 12, 25])
def test_prefix_cache_covers_all_but_the_last_token(
    server: Served, client: OpenAI, length: int
) -> None:
    """vLLM's own cache holds whole blocks of 32 tokens, and these prompts fill none.

    The prompts of later blocks end with the first token that the block before has drawn for them.
    """
    before = server.metric("prefix_cache_hits_total")
    complete(
        client,
        {"method": "blockwise_cd", "k": K, "m": M},
        prompt=[700 + length] * length,
        max_tokens=3 * M,
        ignore_eos=True,
    )
    reused = server.metric("prefix_cache_hits_total") - before
    assert reused == K * (length + M) + K * (length + 2 * M)
