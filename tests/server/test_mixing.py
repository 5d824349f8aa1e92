"""Logit mixing: recipes, identities, the law, members' KV among other requests."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
import pytest
import torch
from openai import OpenAI

from cdserve.demo.tiny import MODEL_DIR, Q_HEAD_DIR, REF_DIR, TUNED_DIR
from cdserve.demo.tiny.build.folders import load_model
from value_heads import QHead

from .served import Served
from .wire import (
    BEST_OF_N,
    BLOCKWISE,
    PROMPT,
    chat,
    check_refused,
    complete,
    joined,
    of_seeds,
    text_of,
)

HALF = {"method": "logit_mixing", "weights": {"base": 0.5, "tuned": 0.5}}
TILT = {"method": "tokenwise_cd", "beta": 0.2}
FOLDERS = {"base": MODEL_DIR, "tuned": TUNED_DIR, "ref": REF_DIR}


def mixing(**weights: float) -> dict[str, Any]:
    return {"method": "logit_mixing", "weights": weights}


def by(kind: str, **fields: Any) -> dict[str, Any]:
    return {"method": "logit_mixing", "recipe": {"kind": kind, **fields}}


class Reference:
    """The demo's models and Q-head in Transformers, float32."""

    def __init__(self) -> None:
        self._models = {name: load_model(folder) for name, folder in FOLDERS.items()}
        self._head = QHead.from_pretrained(Q_HEAD_DIR)

    @torch.inference_mode()
    def logits(
        self, token_ids: Sequence[int], weights: Mapping[str, float], beta: float | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The base model's logits behind every prefix, and the steered ones, ``[T, |V|]``."""
        ids = torch.tensor([token_ids])
        own = {name: model(input_ids=ids).logits[0] for name, model in self._models.items()}
        steered = torch.stack([weight * own[name] for name, weight in weights.items()]).sum(0)
        if beta is not None:
            hidden = self._models["base"].model(input_ids=ids).last_hidden_state[0]
            steered += self._head(hidden)[:, 0] / beta
        return own["base"], steered

    def check(self, answer: Any, weights: Mapping[str, float], beta: float | None = None) -> None:
        """Asserts the logprobs and the KL of an answer at temperature 1."""
        choice = answer.choices[0]
        whole = [*choice.prompt_token_ids, *choice.token_ids]
        start = len(choice.prompt_token_ids) - 1
        pair = self.logits(whole[:-1], weights, beta)
        log_p, log_pi = (z[start:].log_softmax(-1) for z in pair)
        taken = log_pi[range(len(choice.token_ids)), choice.token_ids].tolist()
        assert choice.logprobs.token_logprobs == pytest.approx(taken, abs=5e-3)
        exact = (log_pi.exp() * (log_pi - log_p)).sum().item()
        assert answer.alignment["kl"]["estimate"] == pytest.approx(exact, rel=2e-3, abs=1e-3)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


class TestIdentities:
    @pytest.mark.parametrize("ask", [complete, chat])
    @pytest.mark.parametrize("fields", [{}, {"temperature": 0.7, "top_p": 0.8}, {"n": 2}])
    def test_mix_of_the_base_alone_is_plain_decoding(
        self, client: OpenAI, ask: Any, fields: dict[str, Any]
    ) -> None:
        plain, mixed = ask(client, **fields), ask(client, mixing(base=1.0), **fields)
        assert [text_of(c) for c in mixed.choices] == [text_of(c) for c in plain.choices]
        assert mixed.alignment["kl"]["estimate"] == 0

    def test_two_equal_members_are_as_one(self, client: OpenAI) -> None:
        one = complete(client, mixing(tuned=1.0), logprobs=0)
        two = complete(client, mixing(tuned=0.5, twin=0.5), logprobs=0)
        assert two.choices[0].text == one.choices[0].text
        assert two.choices[0].logprobs == one.choices[0].logprobs

    def test_recipes_are_weights(self, client: OpenAI) -> None:
        recipes = [
            (by("mixture", weights={"base": 0.5, "tuned": 0.5}), HALF),
            (
                by("mixture", weights={"tuned": 0.25}, reference="base"),
                mixing(base=0.75, tuned=0.25),
            ),
            (by("rescale", tuned="tuned", ratio=0.5), HALF),
        ]
        for recipe, weights in recipes:
            assert complete(client, recipe).choices == complete(client, weights).choices

    @pytest.mark.parametrize("weights", [{"tuned": 1e6}, {"base": 1e6, "tuned": 1e-300}])
    def test_weights_of_any_size_are_answered(
        self, client: OpenAI, weights: dict[str, float]
    ) -> None:
        answer = complete(client, mixing(**weights), max_tokens=8)
        assert math.isfinite(answer.alignment["kl"]["estimate"])

    def test_proxy_of_two_equal_members_is_the_base(self, client: OpenAI) -> None:
        proxy = by("proxy", tuned="tuned", reference="tuned")
        assert complete(client, proxy).choices == complete(client).choices


class TestLaw:
    @pytest.mark.parametrize(
        "weights",
        [{"base": 0.5, "tuned": 0.5}, {"tuned": 1.0}, {"base": 0.2, "ref": 0.3, "tuned": 0.6}],
    )
    def test_logits_are_the_weighted_sum(
        self, client: OpenAI, reference: Reference, weights: dict[str, float]
    ) -> None:
        reference.check(complete(client, mixing(**weights), logprobs=0), weights)

    def test_proxy_preset_of_the_operator_is_followed(
        self, client: OpenAI, reference: Reference
    ) -> None:
        answer = complete(client, model="demo:proxy", logprobs=0)
        reference.check(answer, {"base": 1.0, "tuned": 1.0, "ref": -1.0})

    def test_tilt_over_a_mixture_matches_transformers(
        self, client: OpenAI, reference: Reference
    ) -> None:
        answer = complete(client, {**TILT, "proposal": HALF}, logprobs=0)
        reference.check(answer, HALF["weights"], beta=0.2)

    @pytest.mark.parametrize("policy", [BEST_OF_N, BLOCKWISE], ids=lambda p: p["method"])
    def test_search_over_a_mixture_matches_transformers(
        self, client: OpenAI, reference: Reference, policy: dict[str, Any]
    ) -> None:
        answer = complete(client, {**policy, "proposal": HALF}, logprobs=0, max_tokens=90)
        choice = answer.choices[0]
        whole = [*choice.prompt_token_ids, *choice.token_ids]
        _, mixed = reference.logits(whole[:-1], HALF["weights"], None)
        log_pi = mixed[len(choice.prompt_token_ids) - 1 :].log_softmax(-1)
        taken = log_pi[range(len(choice.token_ids)), choice.token_ids].tolist()
        assert choice.logprobs.token_logprobs == pytest.approx(taken, abs=5e-3)
        assert answer.alignment["kl"]["estimator"] == "epsilon_n+exact_path"

    def test_mixing_steers_towards_the_tuned_member(self, client: OpenAI) -> None:
        def mean(policy: dict[str, Any]) -> float:
            made = of_seeds(client, range(12), policy, max_tokens=80)
            return sum(answer.alignment["score"] for answer in made) / len(made)

        assert mean(mixing(base=1.0)) < mean(mixing(tuned=1.0))


class TestTogether:
    def test_mixing_does_not_read_kv_of_plain_requests(
        self, client: OpenAI, reference: Reference
    ) -> None:
        """Members wrote no KV into the blocks that plain requests left."""
        prompt = [600 + i for i in range(100)]
        for policy in (None, {"method": "best_of_n", "n": 2}):
            complete(client, policy, prompt=prompt)
        for _ in range(2):
            answer = complete(client, HALF, prompt=prompt, logprobs=0)
            reference.check(answer, HALF["weights"])
        answer = complete(client, mixing(ref=1.0), prompt=prompt, logprobs=0)
        reference.check(answer, {"ref": 1.0})

    async def test_mixed_request_does_not_depend_on_its_batch(
        self, server: Served, client: OpenAI, reference: Reference
    ) -> None:
        policies = [
            None,
            TILT,
            BEST_OF_N,
            BLOCKWISE,
            mixing(ref=1.0),
            {**BLOCKWISE, "proposal": HALF},
        ]
        async with server.async_client() as http:
            others = [
                asyncio.create_task(_post(http, policies[i % 6], seed=i, prompt=PROMPT[: 10 + i]))
                for i in range(31)
            ]
            answer = await asyncio.to_thread(complete, client, HALF, logprobs=0)
            await asyncio.gather(*others)
        reference.check(answer, HALF["weights"])

    def test_stream_under_mixing_matches_the_whole_answer(self, client: OpenAI) -> None:
        whole = complete(client, HALF)
        chunks = list(complete(client, HALF, stream=True))
        assert joined(chunks) == whole.choices[0].text
        assert [c.alignment for c in chunks if hasattr(c, "alignment")] == [whole.alignment]


class TestErrors:
    @pytest.mark.parametrize(
        ("policy", "param", "words"),
        [
            ({"method": "logit_mixing"}, "alignment.weights", ["weights and recipe"]),
            (
                {**HALF, **by("rescale", tuned="tuned", ratio=1.0)},
                "alignment.recipe",
                ["exactly one"],
            ),
            (mixing(base=0.0), "alignment.weights", ["all weights are 0"]),
            (mixing(other=1.0), "alignment.weights", ["'other'", "base, ref, tuned"]),
            (mixing(base=2.0, tuned=-1.0), "alignment.weights", ["-1", "allow_negative_weights"]),
            (by("proxy", tuned="tuned", reference="ref"), "alignment.recipe", ["'ref'", "-1"]),
            (
                by("mixture", weights={"tuned": 0.5}),
                "alignment.recipe",
                ["sum to 0.5", "reference"],
            ),
            (
                by("rescale", tuned="tuned", ratio=0),
                "alignment.recipe.ratio",
                ["0", "above 0"],
            ),
            (
                by("rescale", tuned="tuned", ratio=1.0, beta=2),
                "alignment.recipe.beta",
                ["accepted here: kind, ratio, reference, tuned"],
            ),
            (
                {**TILT, "proposal": {**HALF, "weights": {"base": "much"}}},
                "alignment.proposal.weights.base",
                ["'much'"],
            ),
            (
                {**BLOCKWISE, "proposal": {**TILT, "proposal": {**HALF, "alpha": 1}}},
                "alignment.proposal.proposal.alpha",
                ["accepted here: method, recipe, weights"],
            ),
            (by("blend"), "alignment.recipe.kind", ["mixture", "rescale", "proxy"]),
            (
                {**BLOCKWISE, "proposal": mixing(other=1.0)},
                "alignment.proposal.weights",
                ["'other'"],
            ),
            (
                {**TILT, "proposal": mixing(other=1.0)},
                "alignment.proposal.weights",
                ["'other'"],
            ),
        ],
    )
    def test_mixing_errors_name_the_field(
        self, client: OpenAI, policy: dict[str, Any], param: str, words: list[str]
    ) -> None:
        check_refused(client, policy, param, words)

    def test_operator_preset_may_have_negative_weights(self, client: OpenAI) -> None:
        assert complete(client, "away").alignment["method"] == "logit_mixing"


async def _post(http: httpx2.AsyncClient, policy: Any, **fields: Any) -> None:
    body = {"model": "demo", "max_tokens": 60, **fields}
    if policy is not None:
        body["alignment"] = policy
    (await http.post("/v1/completions", json=body)).raise_for_status()
