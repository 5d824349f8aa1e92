"""``blockwise_cd`` with a gate, on the real engine."""

from typing import Any

import pytest
from openai import OpenAI

from cdserve import kl

from .wire import BLOCKWISE, complete, joined, text_of

GATED: dict[str, Any] = {**BLOCKWISE, "gate": {"threshold": 0.3}, "report": "trace"}
FIELDS = {"max_tokens": 64}


def test_gate_searches_some_blocks_within_the_same_bound(client: OpenAI) -> None:
    counts = {"searched": 0, "skipped": 0}
    for seed in range(4):
        answer = complete(client, GATED, seed=seed, **FIELDS)
        report = answer.alignment
        for decision in report["trace"]:
            scores = [candidate["score"] for candidate in decision["candidates"]]
            assert len(scores) == (2 if max(scores[:2]) >= 0.3 else 4)
            assert decision["kl"]["bound"] == pytest.approx(kl.best_of_n_bound(4))
        for outcome, count in report["gate"].items():
            counts[outcome] += count
        chunks = list(complete(client, GATED, seed=seed, stream=True, **FIELDS))
        assert joined(chunks) == text_of(answer.choices[0])
    assert all(counts.values())
