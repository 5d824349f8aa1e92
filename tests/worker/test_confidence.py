"""Confidence rewards from the served engine equal those of a Transformers forward pass."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
import pytest
import torch

from cdserve.demo.tiny import MODEL_DIR
from cdserve.demo.tiny.build.folders import load_model, load_tokenizer
from tests.server.served import CONFIDENCES, Served

TOLERANCE = 1e-4
REWARDS = dict.fromkeys(CONFIDENCES, 1.0)
BEST_OF_N = {"method": "best_of_n", "n": 4, "rewards": REWARDS, "report": "trace"}
BLOCKWISE = {"method": "blockwise_cd", "k": 3, "m": 7, "rewards": REWARDS, "report": "trace"}
POLICIES: dict[str, dict[str, Any]] = {
    "best_of_n": BEST_OF_N,
    "at once": {**BEST_OF_N, "at_once": 2},
    "blockwise_cd": BLOCKWISE,
    "beams": {**BLOCKWISE, "k": 2, "beam_width": 2},
    "of one reward": {**BLOCKWISE, "rewards": {"self_certainty": 1.0}},
    "mixed": {
        **BLOCKWISE,
        "proposal": {"method": "logit_mixing", "weights": {"base": 0.5, "twin": 0.5}},
    },
    "tilted": {**BEST_OF_N, "proposal": {"method": "tokenwise_cd", "beta": 0.3}},
}


class Reference:
    """The demo's model in Transformers, float32, and the rewards by their definitions."""

    def __init__(self) -> None:
        self._model = load_model(MODEL_DIR)
        self.tokenizer = load_tokenizer(MODEL_DIR)

    @torch.inference_mode()
    def rewards(self, prompt: Sequence[int], response: Sequence[int]) -> list[dict[str, float]]:
        """The rewards of the response up to each of its tokens."""
        ids = torch.tensor([[*prompt, *response]])
        log_p = self._model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        p, size = log_p.exp(), log_p.shape[-1]
        taken = log_p.gather(-1, torch.tensor(response)[:, None])[:, 0]
        certainty = -(size * p).log().mean(-1)
        entropy, top = (p * log_p).sum(-1), -log_p.topk(7).values.mean(-1)
        return [
            {
                "self_certainty": float(certainty[:n].mean()),
                "sharp": float(windows(entropy[:n], 5).mean()),
                "lowest": float(windows(top[:n], 9).min()),
                "ending": float(taken[max(0, n - 9) : n].mean()),
                "doubtful": lowest_tenth(windows(certainty[:n], 3)),
                "likely": float(taken[:n].mean()),
            }
            for n in range(1, len(response) + 1)
        ]


def windows(values: torch.Tensor, width: int) -> torch.Tensor:
    return values.unfold(0, min(width, len(values)), 1).mean(-1)


def lowest_tenth(groups: torch.Tensor) -> float:
    return float(groups.sort().values[: max(1, len(groups) // 10)].mean())


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def tokens(length: int, seed: int) -> list[int]:
    rng = random.Random(f"confidence/{length}/{seed}")
    return [rng.randrange(6, 1500) for _ in range(length)]


def check(reported: Mapping[str, float], expected: Mapping[str, float]) -> None:
    """Asserts the reported rewards."""
    assert reported == pytest.approx({name: expected[name] for name in reported}, abs=TOLERANCE)


def check_answer(
    reference: Reference, prompt: Sequence[int], choice: Any, report: Any, m: int
) -> None:
    """Asserts the rewards of the response, and of the prefix at each of its decisions."""
    response = choice["token_ids"]
    expected = reference.rewards(prompt, response)
    check(report["rewards"], expected[-1])
    taken = [c for d in report["trace"] for c in d["candidates"] if c["chosen"]]
    for i, candidate in enumerate(taken):
        check(candidate["rewards"], expected[min(m * (i + 1), len(response)) - 1])


def body(prompt: list[int], policy: dict[str, Any], **fields: Any) -> dict[str, Any]:
    sent = {"model": "demo", "prompt": prompt, "max_tokens": 40, "return_token_ids": True}
    return {**sent, "alignment": policy, **fields}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_confidences_of_drawn_responses_match_transformers(
    http: httpx2.Client, reference: Reference, policy: dict[str, Any]
) -> None:
    """Of a fixed length, and behind a cached prompt of their own."""
    prompt = tokens(100, seed=1)
    for seed, ignore_eos in ((1, True), (2, False)):
        answer = http.post(
            "/v1/completions", json=body(prompt, policy, ignore_eos=ignore_eos, seed=seed)
        )
        assert answer.status_code == 200, answer.text
        choice, report = answer.json()["choices"][0], answer.json()["alignment"]
        check_answer(reference, prompt, choice, report, policy.get("m", 40))


def test_confidence_of_a_steered_response_is_that_of_the_base_model(
    http: httpx2.Client, reference: Reference
) -> None:
    prompt = tokens(40, seed=2)
    policy = {"method": "logit_mixing", "weights": {"base": 0.5, "tuned": 0.5}, "rewards": REWARDS}
    answer = http.post("/v1/completions", json=body(prompt, policy)).raise_for_status().json()
    expected = reference.rewards(prompt, answer["choices"][0]["token_ids"])
    check(answer["alignment"]["rewards"], expected[-1])


def test_search_selects_the_most_confident_response(http: httpx2.Client) -> None:
    policy = {**BEST_OF_N, "rewards": {"self_certainty": 1.0}}
    answer = http.post("/v1/completions", json=body(tokens(20, seed=3), policy)).json()
    (decision,) = answer["alignment"]["trace"]
    scores = {one["score"]: one["chosen"] for one in decision["candidates"]}
    assert scores[max(scores)]


@pytest.mark.parametrize("length", [1, 500])
def test_confidences_of_given_texts_match_transformers(
    http: httpx2.Client, reference: Reference, length: int
) -> None:
    prompt = tokens(length, seed=4)
    texts = ["I love it. The handle has a firm grip.", "It broke.", "", "word " * 300]
    sent = {"prompt": prompt, "responses": texts, "rewards": REWARDS, "per_token": True}
    answer = http.post("/v1/alignment/score", json=sent)
    for text, one in zip(texts, answer.raise_for_status().json()["scores"], strict=True):
        ids = reference.tokenizer.encode(text, add_special_tokens=False)
        expected = reference.rewards(prompt, [*ids, reference.tokenizer.eos_token_id])
        for i, prefix in enumerate(expected):
            check({name: values[i] for name, values in one["per_token"].items()}, prefix)
        check(one["rewards"], expected[-1])
        assert one["score"] == pytest.approx(math.fsum(one["rewards"].values()))


def test_description_shows_what_a_confidence_is(server: Served) -> None:
    with server.client() as http:
        rewards = http.get("/v1/alignment").json()["rewards"]
    shown = {key: rewards["lowest"][key] for key in ("kind", "of", "top_k", "window", "aggregate")}
    assert shown == CONFIDENCES["lowest"]
    assert rewards["lowest"]["prefixes"]
