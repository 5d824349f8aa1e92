"""Log-likelihoods from the served engine equal those of a Transformers forward pass."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import httpx2
import pytest
import torch
from openai import OpenAI

from cdserve.demo.tiny import MODEL_DIR, REF_DIR, TUNED_DIR
from cdserve.demo.tiny.build.folders import load_model, load_tokenizer
from tests.server.served import Served
from tests.server.wire import of_seeds

BETA = 0.5
MODELS = {"base": MODEL_DIR, "tuned": TUNED_DIR, "ref": REF_DIR}
TWO = {"dpo": 1.0, "fluent": 0.01}
BEST_OF_N = {"method": "best_of_n", "n": 4, "rewards": TWO, "report": "trace"}
BLOCKWISE = {"method": "blockwise_cd", "k": 3, "m": 7, "rewards": TWO, "report": "trace"}
POLICIES: dict[str, dict[str, Any]] = {
    "best_of_n": BEST_OF_N,
    "blockwise_cd": BLOCKWISE,
    "beams": {**BLOCKWISE, "k": 2, "beam_width": 2},
    "with a head": {**BLOCKWISE, "rewards": {**TWO, "sentiment": 1.0}},
    "mixed": {
        **BLOCKWISE,
        "proposal": {"method": "logit_mixing", "weights": {"base": 0.5, "twin": 0.5}},
    },
    "tilted": {**BEST_OF_N, "proposal": {"method": "tokenwise_cd", "beta": 0.3}},
}
TOLERANCE = 2e-3


class Reference:
    """The demo's models in Transformers, float32."""

    def __init__(self) -> None:
        self._models = {name: load_model(folder) for name, folder in MODELS.items()}
        self.tokenizer = load_tokenizer(MODEL_DIR)

    @torch.inference_mode()
    def sums(self, prompt: Sequence[int], response: Sequence[int]) -> dict[str, list[float]]:
        """The rewards of the response up to each of its tokens."""
        ids = torch.tensor([[*prompt, *response]])
        sums = {}
        for name, model in self._models.items():
            log_p = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            taken = log_p.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :, 0]
            sums[name] = taken.cumsum(0)
        ratio = BETA * (sums["tuned"] - sums["ref"])
        return {"fluent": sums["base"].tolist(), "dpo": ratio.tolist()}


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def tokens(length: int, seed: int) -> list[int]:
    rng = random.Random(f"likelihoods/{length}/{seed}")
    return [rng.randrange(6, 1500) for _ in range(length)]


def check(reference: Reference, prompt: Sequence[int], answer: Any, m: int) -> None:
    """Asserts the rewards of the response, and of the prefix at each of its decisions."""
    choice, report = answer["choices"][0], answer["alignment"]
    response = choice["token_ids"]
    expected = reference.sums(prompt, response)
    for name, sums in expected.items():
        assert report["rewards"][name] == pytest.approx(sums[-1], abs=TOLERANCE)
    taken = [c for d in report["trace"] for c in d["candidates"] if c["chosen"]]
    ends = [min(m * (i + 1), len(response)) for i in range(len(taken))]
    for end, candidate in zip(ends, taken, strict=True):
        for name, sums in expected.items():
            assert candidate["rewards"][name] == pytest.approx(sums[end - 1], abs=TOLERANCE)


def body(prompt: list[int], policy: dict[str, Any], **fields: Any) -> dict[str, Any]:
    sent = {"model": "demo", "prompt": prompt, "max_tokens": 40, "return_token_ids": True}
    return {**sent, "alignment": policy, **fields}


@pytest.mark.parametrize("length", [1, 32, 300])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_log_likelihoods_of_drawn_responses_match_transformers(
    http: httpx2.Client,
    reference: Reference,
    policy: dict[str, Any],
    length: int,
) -> None:
    prompt = tokens(length, seed=1)
    answer = http.post("/v1/completions", json=body(prompt, policy, ignore_eos=length > 1))
    assert answer.status_code == 200, answer.text
    check(reference, prompt, answer.json(), policy.get("m", 40))


def test_log_likelihoods_of_ended_responses_match_transformers(
    client: OpenAI, reference: Reference
) -> None:
    prompt = reference.tokenizer.encode("Review of the film:\n")
    answers = of_seeds(client, range(5), BEST_OF_N, prompt=prompt, max_tokens=200)
    for answer in answers:
        check(reference, prompt, answer.model_dump(), 200)
    assert "stop" in {answer.choices[0].finish_reason for answer in answers}


def test_log_likelihoods_at_stop_strings_match_transformers(
    client: OpenAI, reference: Reference
) -> None:
    prompt = reference.tokenizer.encode("Review of the film:\n")
    fields = {"prompt": prompt, "max_tokens": 80, "stop": [" and", "."]}
    for answer in of_seeds(client, range(6), BLOCKWISE, **fields):
        response = answer.choices[0].token_ids
        assert answer.alignment["rewards"]["fluent"] == pytest.approx(
            reference.sums(prompt, response)["fluent"][-1], abs=TOLERANCE
        )


async def test_log_likelihoods_in_a_mixed_batch_match_transformers(
    server: Served, reference: Reference
) -> None:
    """Beside plain requests, others that mix, and prompts that share blocks."""
    shared = tokens(64, seed=2)
    prompts = [[*shared, *tokens(i, seed=3)] for i in range(16)]
    policies = list(POLICIES.values())
    async with server.async_client() as client:

        async def ask(index: int) -> Any:
            sent = body(prompts[index], policies[index % len(policies)], ignore_eos=True)
            return (await client.post("/v1/completions", json=sent)).raise_for_status().json()

        async def plain(index: int) -> None:
            sent = body(prompts[index], {"method": "none"})
            (await client.post("/v1/completions", json=sent)).raise_for_status()

        answers = await asyncio.gather(*map(ask, range(16)), *map(plain, range(16)))
    for index, prompt in enumerate(prompts):
        check(reference, prompt, answers[index], policies[index % len(policies)].get("m", 40))


def test_log_likelihoods_under_mixing_match_transformers(
    http: httpx2.Client, reference: Reference
) -> None:
    weights = {"base": 0.5, "tuned": 0.5}
    policy = {"method": "logit_mixing", "weights": weights, "rewards": TWO}
    prompt = tokens(40, seed=5)
    answer = http.post("/v1/completions", json=body(prompt, policy)).json()
    expected = reference.sums(prompt, answer["choices"][0]["token_ids"])
    for name, sums in expected.items():
        assert answer["alignment"]["rewards"][name] == pytest.approx(sums[-1], abs=TOLERANCE)


@pytest.mark.parametrize("length", [1, 32, 500])
def test_log_likelihoods_of_given_texts_match_transformers(
    http: httpx2.Client, reference: Reference, length: int
) -> None:
    prompt = tokens(length, seed=4)
    texts = ["I love it. The handle has a firm grip.", "It broke.", "", "word " * 300]
    sent = {"prompt": prompt, "responses": texts, "rewards": TWO, "per_token": True}
    answer = http.post("/v1/alignment/score", json=sent)
    for text, one in zip(texts, answer.raise_for_status().json()["scores"], strict=True):
        ids = reference.tokenizer.encode(text, add_special_tokens=False)
        expected = reference.sums(prompt, [*ids, reference.tokenizer.eos_token_id])
        for name, sums in expected.items():
            assert one["per_token"][name] == pytest.approx(sums, abs=2 * TOLERANCE)
            assert one["rewards"][name] == one["per_token"][name][-1]
