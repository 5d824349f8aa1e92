"""A model in two workers' halves: every method answers as one worker does."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from .killing import gone, kill, load, started
from .served import CONFIDENCES, Served, demo_settings
from .wire import BEST_OF_N, BLOCKWISE, PROMPT, assert_close, complete

TILT = {"method": "tokenwise_cd", "beta": 0.2}
MIXED = {"method": "logit_mixing", "weights": {"base": 0.5, "tuned": 0.3, "ref": 0.2}}
POLICIES = {
    "plain": None,
    "blockwise": BLOCKWISE,
    "several rewards": {
        **BEST_OF_N,
        "rewards": {
            **{"sentiment": 1.0, "fluent": 0.1, "dpo": 0.1, "sentiment_gold": 0.1},
            **dict.fromkeys(CONFIDENCES, 0.1),
        },
    },
    "tilt": TILT,
    "top_k": {**TILT, "top_k": 20},
    "mixing": MIXED,
    "kl_budget": {**TILT, "kl_budget": 2.0},
    "proposal": {**BLOCKWISE, "proposal": TILT},
    "mixed proposal": {**BEST_OF_N, "proposal": MIXED},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The demo on two workers."""
    settings = demo_settings(presets={})
    settings["rewards"] |= {
        "fluent": {"kind": "loglik"},
        "dpo": {"kind": "log_ratio", "tuned": "tuned", "reference": "ref", "beta": 0.5},
        **CONFIDENCES,
    }
    flags = ["--tensor-parallel-size", "2"]
    with Served(settings, tmp_path_factory.mktemp("halves"), flags) as served:
        yield served


@pytest.fixture(scope="module")
def halves(served: Served) -> Iterator[OpenAI]:
    """A client of the demo on two workers."""
    with OpenAI(base_url=f"{served.base_url}/v1", api_key="-", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_request_is_answered_as_by_one_worker(
    halves: OpenAI, client: OpenAI, policy: dict[str, Any] | None
) -> None:
    traced = policy and {**policy, "report": "trace"}
    ours, theirs = (complete(one, traced) for one in (halves, client))
    assert ours.choices[0].text == theirs.choices[0].text
    assert ours.usage == theirs.usage
    if policy is not None:
        assert_close(ours.alignment, theirs.alignment)


def test_texts_are_scored_as_by_one_worker(halves: OpenAI, http: httpx2.Client) -> None:
    body = {
        "prompt": PROMPT,
        "responses": [" A good mower.", " It broke at once."],
        "rewards": {"sentiment": 1.0, "fluent": 1.0, "dpo": 1.0} | dict.fromkeys(CONFIDENCES, 1.0),
    }
    ours = halves.post("/alignment/score", body=body, cast_to=dict[str, Any])
    assert_close(ours, http.post("/v1/alignment/score", json=body).raise_for_status().json())


@pytest.mark.server  # in the process that runs the other tests of this server
def test_worker_that_hangs_in_a_collective_ends_with_a_killed_server(served: Served) -> None:
    """The last test of this server. The other worker is stopped: this one blocks."""
    processes = started(served)
    *others, stopped = (one for one in processes if "VLLM::" in " ".join(one.cmdline()))
    load(served)
    stopped.suspend()
    kill(served)
    assert gone(others) == []
    stopped.resume()
    assert gone(processes) == []
