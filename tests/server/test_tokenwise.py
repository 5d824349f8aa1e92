"""Token-wise controlled decoding: through the client, against the law, among other requests."""

import asyncio
import math
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from cdserve import kl

from .served import Served
from .tilted import BETA, TOKENWISE, Tilted, check_tilted
from .wire import (
    BEST_OF_N,
    BLOCKWISE,
    PROMPT,
    Ask,
    chat,
    check_refused,
    complete,
    joined,
    of_seeds,
    text_of,
)

NO_TILT = {"method": "tokenwise_cd", "beta": 1e9}


@pytest.fixture(scope="module")
def reference() -> Tilted:
    return Tilted()


@pytest.fixture(params=[complete, chat], ids=["completions", "chat"])
def ask(request: pytest.FixtureRequest) -> Ask:
    made: Ask = request.param
    return made


class TestAnswers:
    def test_tokenwise_report_has_its_shape_and_kl(self, client: OpenAI, ask: Ask) -> None:
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

    def test_tokenwise_stream_is_the_same_text(self, client: OpenAI, ask: Ask) -> None:
        whole = ask(client, TOKENWISE)
        chunks = list(ask(client, TOKENWISE, stream=True))
        assert joined(chunks) == text_of(whole.choices[0])
        with_report = [chunk for chunk in chunks if hasattr(chunk, "alignment")]
        assert [chunk.alignment for chunk in with_report] == [whole.alignment]

    def test_tokenwise_text_arrives_before_the_response_ends(
        self, server: Served, client: OpenAI, ask: Ask
    ) -> None:
        """The engine is stopped after its first tokens, so a chunk with text was not held back.

        How many tokens share a chunk depends on how soon the API server runs.
        """
        drawn = server.metric("generation_tokens_total")
        with ask(client, TOKENWISE, stream=True, max_tokens=1500, ignore_eos=True) as stream:
            server.wait_for_tokens(drawn)
            with server.paused():
                choices = (choice for chunk in stream for choice in chunk.choices)
                first = next(choice for choice in choices if text_of(choice))
            assert first.finish_reason is None

    def test_tokenwise_preset_is_followed(self, client: OpenAI) -> None:
        answer = complete(client, model="demo:tokenwise")
        assert answer.model == "demo:tokenwise"
        assert answer.alignment["method"] == "tokenwise_cd"

    def test_tokenwise_gives_as_many_choices_as_requested(self, client: OpenAI, ask: Ask) -> None:
        answer = ask(client, TOKENWISE, n=3)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert len({text_of(choice) for choice in answer.choices}) == 3
        assert len(answer.alignment["choices"]) == 3

    def test_tokenwise_honours_stop_strings_and_traces(self, client: OpenAI) -> None:
        whole = complete(client, TOKENWISE).choices[0].text
        stop = whole[20:26]
        answer = complete(client, {**TOKENWISE, "report": "trace"}, stop=[stop])
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].text == whole[: whole.index(stop)]
        [decision] = answer.alignment["trace"]
        assert [c["text"] for c in decision["candidates"]] == [answer.choices[0].text]

    def test_lower_beta_has_a_higher_reward(self, client: OpenAI) -> None:
        """Lower beta, higher reward; a negative weight turns it round."""

        def mean(policy: dict[str, Any]) -> float:
            made = of_seeds(client, range(12), policy, max_tokens=80)
            return sum(answer.alignment["score"] for answer in made) / len(made)

        down = {**TOKENWISE, "rewards": {"sentiment": -1.0}}
        assert -mean(down) < mean(NO_TILT) < mean(TOKENWISE)


class TestIdentities:
    @pytest.mark.parametrize("fields", [{}, {"temperature": 0.7, "top_p": 0.8}, {"n": 2}])
    def test_large_beta_is_plain_decoding(
        self, client: OpenAI, ask: Ask, fields: dict[str, Any]
    ) -> None:
        plain, tilted = ask(client, **fields), ask(client, NO_TILT, **fields)
        assert [text_of(c) for c in tilted.choices] == [text_of(c) for c in plain.choices]
        assert tilted.alignment["kl"]["estimate"] == pytest.approx(0, abs=1e-6)

    @pytest.mark.parametrize("weight", [0.0, 1e-320])
    def test_vanishing_reward_weights_are_plain_decoding(
        self, client: OpenAI, weight: float
    ) -> None:
        none = complete(client, {**TOKENWISE, "beta": 1e12, "rewards": {"sentiment": weight}})
        assert none.choices == complete(client).choices
        assert none.alignment["kl"]["estimate"] == 0

    @pytest.mark.parametrize("weight", [1e6, -1e6])
    def test_strongest_tilt_is_answered(self, client: OpenAI, weight: float) -> None:
        """What it prefers most is all there is; the report stays finite."""
        policy = {**TOKENWISE, "beta": 1e-6, "rewards": {"sentiment": weight}}
        answer = complete(client, policy, max_tokens=8)
        assert math.isfinite(answer.alignment["kl"]["estimate"])
        assert answer.alignment["kl"]["flag"] == "high"

    def test_one_candidate_of_a_tilted_proposal_is_tokenwise_decoding(self, client: OpenAI) -> None:
        alone = complete(client, TOKENWISE)
        one = complete(client, {"method": "best_of_n", "n": 1, "proposal": TOKENWISE})
        assert one.choices[0].text == alone.choices[0].text
        assert one.alignment["kl"]["estimate"] == pytest.approx(alone.alignment["kl"]["estimate"])

    @pytest.mark.parametrize("policy", [BEST_OF_N, BLOCKWISE], ids=lambda p: p["method"])
    def test_search_with_an_untilted_proposal_is_unchanged(
        self, client: OpenAI, policy: dict[str, Any]
    ) -> None:
        plain, tilted = complete(client, policy), complete(client, {**policy, "proposal": NO_TILT})
        assert tilted.choices[0].text == plain.choices[0].text


class TestLaw:
    @pytest.mark.parametrize("temperature", [1.0, 0.6])
    @pytest.mark.parametrize("top_k", [None, 5])
    def test_tilt_is_inside_the_temperature(
        self, client: OpenAI, reference: Tilted, temperature: float, top_k: int | None
    ) -> None:
        policy = TOKENWISE if top_k is None else {**TOKENWISE, "top_k": top_k}
        answer = complete(client, policy, logprobs=0, temperature=temperature)
        check_tilted(reference, answer.choices[0], answer.alignment, temperature, top_k)

    def test_greedy_takes_the_tilted_best(self, client: OpenAI, reference: Tilted) -> None:
        answer = complete(client, TOKENWISE, temperature=0, logprobs=0)
        choice = answer.choices[0]
        whole = [*choice.prompt_token_ids, *choice.token_ids]
        _, tilted = reference.logits(whole[:-1], BETA)
        best = tilted[len(choice.prompt_token_ids) - 1 :].argmax(-1)
        assert best.tolist() == choice.token_ids

    def test_logit_bias_and_allowed_tokens_apply_after_the_tilt(self, client: OpenAI) -> None:
        fields = {"allowed_token_ids": [300, 301, 302], "max_tokens": 12, "ignore_eos": True}
        answer = complete(client, {**TOKENWISE, "beta": 1e-3}, **fields)
        assert set(answer.choices[0].token_ids) <= {300, 301, 302}
        answer = complete(client, TOKENWISE, logit_bias={"700": 100.0}, max_tokens=5)
        assert answer.choices[0].token_ids == [700] * 5

    def test_grammar_holds_under_a_tilt(self, client: OpenAI) -> None:
        fields = {"structured_outputs": {"choice": ["bad", "good"]}}
        answer = complete(client, {**TOKENWISE, "beta": 1e-3}, **fields)
        assert answer.choices[0].text in ("bad", "good")

    async def test_tilted_request_does_not_depend_on_its_batch(
        self, server: Served, client: OpenAI, reference: Tilted
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
        check_tilted(reference, answer.choices[0], answer.alignment)


class TestComposed:
    @pytest.mark.parametrize("policy", [BEST_OF_N, BLOCKWISE], ids=lambda p: p["method"])
    def test_search_over_a_tilted_proposal_matches_transformers(
        self, client: OpenAI, reference: Tilted, policy: dict[str, Any]
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
                ["0", "at least 1e-06"],
            ),
            ({**TOKENWISE, "top_k": 0}, "alignment.top_k", ["0", "at least 1"]),
            (
                {**TOKENWISE, "rewards": {"brevity": 1.0}},
                "alignment.rewards",
                ["'brevity'", "next-token", "sentiment"],
            ),
            (
                {**BEST_OF_N, "proposal": {"method": "best_of_n", "n": 2}},
                "alignment.proposal.method",
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
                ["not known", "accepted here: beta, method, proposal, rewards, top_k"],
            ),
        ],
    )
    def test_tokenwise_errors_name_the_field(
        self, client: OpenAI, policy: dict[str, Any], param: str, words: list[str]
    ) -> None:
        check_refused(client, policy, param, words)


async def _post(http: httpx2.AsyncClient, policy: Any, **fields: Any) -> None:
    body = {"model": "demo", "max_tokens": 60, **fields}
    if policy is not None:
        body["alignment"] = policy
    (await http.post("/v1/completions", json=body)).raise_for_status()
