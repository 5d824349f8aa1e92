"""Token-wise controlled decoding: through the client, against the law, among other requests."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import httpx2
import pytest
import torch
from openai import BadRequestError, OpenAI

from cdserve import kl
from cdserve.demo import MODEL_DIR, Q_HEAD_DIR
from cdserve.demo.folders import load_model
from value_heads import QHead, centred_on_top_k

from .served import Served
from .wire import BEST_OF_N, BLOCKWISE, PROMPT, Ask, chat, complete, joined, text_of

BETA = 0.1
TOKENWISE = {"method": "tokenwise_cd", "beta": BETA}
NO_TILT = {"method": "tokenwise_cd", "beta": 1e9}


class Reference:
    """The demo model and its Q-head in Transformers, float32."""

    def __init__(self) -> None:
        self._model = load_model(MODEL_DIR)
        self._head = QHead.from_pretrained(Q_HEAD_DIR)

    @torch.inference_mode()
    def logits(
        self, token_ids: Sequence[int], beta: float, top_k: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The base model's logits behind every prefix, and the tilted ones, ``[T, |V|]``."""
        hidden = self._model.model(input_ids=torch.tensor([token_ids])).last_hidden_state[0]
        base = self._model.lm_head(hidden)
        delta = self._head(hidden)[:, 0] / beta
        if top_k is not None:
            delta = centred_on_top_k(delta, base, torch.full((len(base),), top_k))
        return base, base + delta


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@pytest.fixture(params=[complete, chat], ids=["completions", "chat"])
def ask(request: pytest.FixtureRequest) -> Ask:
    made: Ask = request.param
    return made


def check(
    reference: Reference, answer: Any, temperature: float = 1.0, top_k: int | None = None
) -> None:
    """Asserts logprobs and KL of an answer against the reference."""
    choice = answer.choices[0]
    whole = [*choice.prompt_token_ids, *choice.token_ids]
    base, tilted = reference.logits(whole[:-1], BETA, top_k)
    start = len(choice.prompt_token_ids) - 1
    log_p, log_pi = ((z[start:] / temperature).log_softmax(-1) for z in (base, tilted))
    taken = tilted[start:].log_softmax(-1)[range(len(choice.token_ids)), choice.token_ids]
    assert choice.logprobs.token_logprobs == pytest.approx(taken.tolist(), abs=2e-3)
    exact = (log_pi.exp() * (log_pi - log_p)).sum().item()
    assert answer.alignment["kl"]["estimate"] == pytest.approx(exact, rel=1e-3, abs=1e-4)


class TestAnswers:
    def test_the_report(self, client: OpenAI, ask: Ask) -> None:
        answer = ask(client, TOKENWISE)
        report = answer.alignment
        assert report["method"] == "tokenwise_cd"
        assert set(report["rewards"]) == {"sentiment"}
        assert report["score"] == report["rewards"]["sentiment"] == report["scores"]["max"]
        counts = [report[name] for name in ("decisions", "candidates", "ties")]
        assert counts == [1, 1, 0]
        assert report["candidate_tokens"] == answer.usage.completion_tokens
        spent = report["kl"]
        assert spent["estimator"] == "exact_path"
        assert spent["bound"] == spent["estimate"] > 0
        assert spent["flag"] == kl.flag(spent["estimate"])

    def test_a_stream_is_the_same_text_token_by_token(self, client: OpenAI, ask: Ask) -> None:
        whole = ask(client, TOKENWISE)
        chunks = list(ask(client, TOKENWISE, stream=True))
        assert joined(chunks) == text_of(whole.choices[0])
        assert sum(1 for c in chunks for choice in c.choices if text_of(choice)) > 10
        with_report = [chunk for chunk in chunks if hasattr(chunk, "alignment")]
        assert [chunk.alignment for chunk in with_report] == [whole.alignment]

    def test_it_is_a_preset(self, client: OpenAI) -> None:
        answer = complete(client, model="demo:tokenwise")
        assert answer.model == "demo:tokenwise"
        assert answer.alignment["method"] == "tokenwise_cd"

    def test_choices_are_as_many_as_asked_for(self, client: OpenAI, ask: Ask) -> None:
        answer = ask(client, TOKENWISE, n=3)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert len({text_of(choice) for choice in answer.choices}) == 3
        assert len(answer.alignment["choices"]) == 3

    def test_stop_strings_and_traces(self, client: OpenAI) -> None:
        whole = complete(client, TOKENWISE).choices[0].text
        stop = whole[20:26]
        answer = complete(client, {**TOKENWISE, "report": "trace"}, stop=[stop])
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].text == whole[: whole.index(stop)]
        [decision] = answer.alignment["trace"]
        assert [c["text"] for c in decision["candidates"]] == [answer.choices[0].text]

    def test_it_steers(self, client: OpenAI) -> None:
        """Lower beta, higher reward; a negative weight turns it round."""

        def mean(policy: dict[str, Any]) -> float:
            made = [complete(client, policy, seed=seed).alignment["score"] for seed in range(12)]
            return sum(made) / len(made)

        down = {**TOKENWISE, "rewards": {"sentiment": -1.0}}
        assert -mean(down) < mean(NO_TILT) < mean(TOKENWISE)


class TestIdentities:
    @pytest.mark.parametrize("fields", [{}, {"temperature": 0.7, "top_p": 0.8}, {"n": 2}])
    def test_a_large_beta_is_plain_decoding(
        self, client: OpenAI, ask: Ask, fields: dict[str, Any]
    ) -> None:
        plain, tilted = ask(client, **fields), ask(client, NO_TILT, **fields)
        assert [text_of(c) for c in tilted.choices] == [text_of(c) for c in plain.choices]
        assert tilted.alignment["kl"]["estimate"] == pytest.approx(0, abs=1e-6)

    def test_one_candidate_of_a_tilted_proposal_is_token_wise(self, client: OpenAI) -> None:
        alone = complete(client, TOKENWISE)
        one = complete(client, {"method": "best_of_n", "n": 1, "proposal": TOKENWISE})
        assert one.choices[0].text == alone.choices[0].text
        assert one.alignment["kl"]["estimate"] == pytest.approx(alone.alignment["kl"]["estimate"])

    @pytest.mark.parametrize("policy", [BEST_OF_N, BLOCKWISE], ids=lambda p: p["method"])
    def test_a_proposal_that_does_not_tilt_changes_nothing(
        self, client: OpenAI, policy: dict[str, Any]
    ) -> None:
        plain, tilted = complete(client, policy), complete(client, {**policy, "proposal": NO_TILT})
        assert tilted.choices[0].text == plain.choices[0].text


class TestLaw:
    @pytest.mark.parametrize("temperature", [1.0, 0.6])
    @pytest.mark.parametrize("top_k", [None, 5])
    def test_the_tilt_is_inside_the_temperature(
        self, client: OpenAI, reference: Reference, temperature: float, top_k: int | None
    ) -> None:
        policy = TOKENWISE if top_k is None else {**TOKENWISE, "top_k": top_k}
        answer = complete(client, policy, logprobs=0, temperature=temperature)
        check(reference, answer, temperature, top_k)

    def test_greedy_takes_the_tilted_best(self, client: OpenAI, reference: Reference) -> None:
        answer = complete(client, TOKENWISE, temperature=0, logprobs=0)
        choice = answer.choices[0]
        whole = [*choice.prompt_token_ids, *choice.token_ids]
        _, tilted = reference.logits(whole[:-1], BETA)
        best = tilted[len(choice.prompt_token_ids) - 1 :].argmax(-1)
        assert best.tolist() == choice.token_ids

    def test_bias_and_allowed_tokens_come_after_it(self, client: OpenAI) -> None:
        fields = {"allowed_token_ids": [300, 301, 302], "max_tokens": 12, "ignore_eos": True}
        answer = complete(client, {**TOKENWISE, "beta": 1e-3}, **fields)
        assert set(answer.choices[0].token_ids) <= {300, 301, 302}
        answer = complete(client, TOKENWISE, logit_bias={"700": 100.0}, max_tokens=5)
        assert answer.choices[0].token_ids == [700] * 5

    def test_a_grammar_holds(self, client: OpenAI) -> None:
        fields = {"structured_outputs": {"choice": ["bad", "good"]}}
        answer = complete(client, {**TOKENWISE, "beta": 1e-3}, **fields)
        assert answer.choices[0].text in ("bad", "good")

    async def test_neighbours_make_no_difference(
        self, server: Served, client: OpenAI, reference: Reference
    ) -> None:
        """One request among 31 of other policies, some of which are preempted or come late."""
        policies = [None, NO_TILT, {**TOKENWISE, "top_k": 3}, BEST_OF_N, BLOCKWISE]
        async with server.async_client() as http:
            others = [
                asyncio.create_task(_post(http, policies[i % 5], seed=i, prompt=PROMPT[: 10 + i]))
                for i in range(31)
            ]
            answer = await asyncio.to_thread(complete, client, TOKENWISE, logprobs=0)
            await asyncio.gather(*others)
        check(reference, answer)


class TestComposed:
    @pytest.mark.parametrize("policy", [BEST_OF_N, BLOCKWISE], ids=lambda p: p["method"])
    def test_a_search_over_a_tilted_proposal(
        self, client: OpenAI, reference: Reference, policy: dict[str, Any]
    ) -> None:
        answer = complete(client, {**policy, "proposal": TOKENWISE}, logprobs=0)
        choice, report = answer.choices[0], answer.alignment
        whole = [*choice.prompt_token_ids, *choice.token_ids]
        base, tilted = reference.logits(whole[:-1], BETA)
        start = len(choice.prompt_token_ids) - 1
        log_p, log_pi = (z[start:].log_softmax(-1) for z in (base, tilted))
        proposal = (log_pi.exp() * (log_pi - log_p)).sum().item()
        width = policy.get("n", policy.get("k"))
        search = report["decisions"] * (math.log(width) - (width - 1) / width)
        assert report["kl"]["bound"] == pytest.approx(proposal + search, rel=1e-3)
        assert report["kl"]["estimator"] == "epsilon_n+exact_path"
        taken = log_pi[range(len(choice.token_ids)), choice.token_ids]
        assert choice.logprobs.token_logprobs == pytest.approx(taken.tolist(), abs=2e-3)


class TestErrors:
    @pytest.mark.parametrize(
        ("policy", "param", "words"),
        [
            ({"method": "tokenwise_cd"}, "alignment.beta", ["missing"]),
            (
                {**TOKENWISE, "beta": 0},
                "alignment.beta",
                ["0", "greater than or equal to 0.000001"],
            ),
            ({**TOKENWISE, "top_k": 0}, "alignment.top_k", ["0", "greater than or equal to 1"]),
            (
                {**TOKENWISE, "rewards": {"brevity": 1.0}},
                "alignment.rewards",
                ["'brevity'", "next tokens", "sentiment"],
            ),
            (
                {**BEST_OF_N, "proposal": {"method": "best_of_n", "n": 2}},
                "alignment.proposal",
                ["best_of_n", "tokenwise_cd", "logit_mixing"],
            ),
            (
                {**BEST_OF_N, "proposal": {**TOKENWISE, "rewards": {"brevity": 1.0}}},
                "alignment.proposal.rewards",
                ["'brevity'"],
            ),
            (
                {**BEST_OF_N, "proposal": {**TOKENWISE, "report": "trace"}},
                "alignment.proposal.report",
                ["not known"],
            ),
        ],
    )
    def test_they_name_the_field(
        self, client: OpenAI, policy: dict[str, Any], param: str, words: list[str]
    ) -> None:
        with pytest.raises(BadRequestError) as caught:
            complete(client, policy)
        assert caught.value.param == param
        assert all(word in caught.value.message for word in words), caught.value.message


async def _post(http: httpx2.AsyncClient, policy: Any, **fields: Any) -> None:
    body = {"model": "demo", "max_tokens": 60, **fields}
    if policy is not None:
        body["alignment"] = policy
    (await http.post("/v1/completions", json=body)).raise_for_status()
