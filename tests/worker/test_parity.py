"""V inside the engine is V of a plain Transformers forward pass, however vLLM ran the prefix."""

import asyncio
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from openai import OpenAI

from cdserve.demo.tiny import HEAD_DIR, MODEL_DIR
from cdserve.demo.tiny.build.folders import load_model, load_tokenizer
from tests.server.served import CONFIDENCES, Served, demo_settings
from tests.server.tilted import BETA, TOKENWISE, Tilted, check_tilted
from tests.server.wire import blocks, complete
from tests.waiting import HANG_SECONDS
from value_heads import HeadConfig, QHead, ValueHead
from value_heads.heads import POSITION_FEATURES

from . import adapter, test_confidence

TOLERANCE = 1e-4
LENGTHS = [1, 5, 31, 32, 33, 64, 100, 300]
RESPONSE = " I love it. The handle has a firm grip."
BEST_OF_N = {"method": "best_of_n", "n": 4}
BLOCKWISE = {"method": "blockwise_cd", "k": 4, "m": 32}


class Reference:
    """The demo model, with an adapter if there is one, and a head in Transformers, float32."""

    def __init__(self, lora: Path | None = None, head: Path = HEAD_DIR) -> None:
        self._model = load_model(MODEL_DIR)
        if lora is not None:
            adapter.merge(self._model, lora)
        self._head = ValueHead.from_pretrained(head)
        self.tokenizer = load_tokenizer(MODEL_DIR)

    @torch.inference_mode()
    def values(self, token_ids: Sequence[int], prompt_length: int = 0) -> list[float]:
        """V after each token; the prompt's length matters to a head that sees the position."""
        hidden = self._model.model(input_ids=torch.tensor([token_ids])).last_hidden_state
        position = torch.arange(1, len(token_ids) + 1) - prompt_length
        values: list[float] = self._head(hidden, position[None])[0, :, 0].tolist()
        return values

    @torch.inference_mode()
    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """log p of each token but the first, given those before it."""
        ids = torch.tensor([token_ids])
        log_p = self._model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        taken: list[float] = log_p.gather(-1, ids[0, 1:, None])[:, 0].tolist()
        return taken

    def ended(self, text: str) -> list[int]:
        """A finished response's token ids."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return [*ids, self.tokenizer.eos_token_id]

    def check(self, prompt: Sequence[int], token_ids: Sequence[int], report: Any, m: int) -> None:
        """Asserts the value of every decision that a trace reports of a response."""
        values = self.values([*prompt, *token_ids], len(prompt))
        ends = [len(prompt) + m * i for i in range(1, len(blocks(token_ids, m)))]
        expected = [values[end - 1] for end in [*ends, len(values)]]
        chosen = [c["score"] for d in report["trace"] for c in d["candidates"] if c["chosen"]]
        assert chosen == pytest.approx(expected, abs=TOLERANCE)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def tokens(length: int, seed: int = 0) -> list[int]:
    """Token ids that no other test's prompt begins with."""
    rng = random.Random(f"{length}/{seed}")
    return [rng.randrange(6, 1500) for _ in range(length)]


def score(
    http: httpx2.Client,
    prompt: list[int],
    response: str = RESPONSE,
    per_token: bool = False,
    reward: str = "sentiment",
) -> dict[str, Any]:
    """One response's scores."""
    body = {"model": "demo", "prompt": prompt, "responses": [response], "per_token": per_token}
    body["rewards"] = {reward: 1.0}
    answer = http.post("/v1/alignment/score", json=body).raise_for_status()
    scored: dict[str, Any] = answer.json()["scores"][0]
    return scored


class TestScore:
    @pytest.mark.parametrize("length", LENGTHS)
    def test_value_of_every_token_matches_transformers(
        self, http: httpx2.Client, reference: Reference, length: int
    ) -> None:
        prompt = tokens(length)
        expected = reference.values([*prompt, *reference.ended(RESPONSE)])[length:]
        values = score(http, prompt, per_token=True)["per_token"]["sentiment"]
        assert values == pytest.approx(expected, abs=TOLERANCE)

    @pytest.mark.parametrize("length", LENGTHS)
    def test_final_value_at_any_length_matches_transformers(
        self, http: httpx2.Client, reference: Reference, length: int
    ) -> None:
        prompt = tokens(length, seed=1)
        expected = reference.values([*prompt, *reference.ended("")])[-1]
        assert score(http, prompt, "")["score"] == pytest.approx(expected, abs=TOLERANCE)

    def test_values_after_a_prefix_cache_hit_match_transformers(
        self, server: Served, http: httpx2.Client, reference: Reference
    ) -> None:
        prompt = tokens(130, seed=2)
        expected = reference.values([*prompt, *reference.ended(RESPONSE)])
        first = score(http, prompt)["score"]
        hits = server.metric("prefix_cache_hits_total")
        again = score(http, prompt)["score"]
        assert server.metric("prefix_cache_hits_total") >= hits + 128
        assert [first, again] == pytest.approx([expected[-1]] * 2, abs=TOLERANCE)
        every = score(http, prompt, per_token=True)["per_token"]["sentiment"]
        assert every == pytest.approx(expected[130:], abs=TOLERANCE)

    @pytest.mark.parametrize("length", [31, 32, 64, 65, 96, 128])
    def test_values_of_a_prefix_of_a_cached_prompt_match_transformers(
        self, http: httpx2.Client, reference: Reference, length: int
    ) -> None:
        whole = tokens(128, seed=3)
        score(http, whole)
        expected = reference.values([*whole[:length], *reference.ended(RESPONSE)])[-1]
        assert score(http, whole[:length])["score"] == pytest.approx(expected, abs=TOLERANCE)

    async def test_values_of_sixteen_concurrent_texts_match_transformers(
        self, server: Served, reference: Reference
    ) -> None:
        prompts = [tokens(length, seed=6) for length in range(3, 16 * 20, 20)]
        async with server.async_client() as client:
            answers = await asyncio.gather(
                *(
                    client.post(
                        "/v1/alignment/score",
                        json={"prompt": p, "responses": [RESPONSE], "per_token": i % 2 == 0},
                    )
                    for i, p in enumerate(prompts)
                )
            )
        for prompt, answer in zip(prompts, answers, strict=True):
            scored = answer.raise_for_status().json()["scores"][0]
            expected = reference.values([*prompt, *reference.ended(RESPONSE)])
            assert scored["score"] == pytest.approx(expected[-1], abs=TOLERANCE)
            values = scored.get("per_token", {}).get("sentiment", expected[len(prompt) :])
            assert values == pytest.approx(expected[len(prompt) :], abs=TOLERANCE)


class TestGeneration:
    async def test_concurrent_prompts_of_whole_blocks_match_transformers(
        self, server: Served, reference: Reference
    ) -> None:
        """Candidates that begin in one step do not copy what that step has yet to compute."""
        prompts = [tokens(64, seed=100 + i) for i in range(16)]
        policy = {**BEST_OF_N, "n": 8, "report": "trace"}
        fields = {"model": "demo", "max_tokens": 8, "ignore_eos": True, "return_token_ids": True}
        bodies = [{**fields, "prompt": prompt, "alignment": policy} for prompt in prompts]
        async with server.async_client() as client:
            answers = await asyncio.gather(
                *(client.post("/v1/completions", json=body) for body in bodies)
            )
        for prompt, answer in zip(prompts, answers, strict=True):
            made = answer.raise_for_status().json()
            reference.check(prompt, made["choices"][0]["token_ids"], made["alignment"], 100)

    @pytest.mark.parametrize(
        ("policy", "m"), [(BEST_OF_N, 100), (BLOCKWISE, 32), ({**BLOCKWISE, "m": 7}, 7)]
    )
    @pytest.mark.parametrize("length", [1, 20, 31, 32, 300, 700])
    def test_scores_of_every_decision_match_transformers(
        self, client: OpenAI, reference: Reference, policy: dict[str, Any], m: int, length: int
    ) -> None:
        prompt = tokens(length, seed=7)
        traced = {**policy, "report": "trace"}
        fields = {"max_tokens": 70, "ignore_eos": True, "seed": None}
        answer = complete(client, traced, prompt=prompt, **fields)
        reference.check(prompt, answer.choices[0].token_ids, answer.alignment, m)

    @pytest.mark.parametrize("policy", [BEST_OF_N, BLOCKWISE], ids=lambda p: p["method"])
    def test_value_of_an_ended_response_includes_the_end_token(
        self, client: OpenAI, reference: Reference, policy: dict[str, Any]
    ) -> None:
        """The last value is that of the prefix with its end token."""
        answer = complete(client, {**policy, "report": "trace"}, max_tokens=400)
        choice = answer.choices[0]
        assert choice.token_ids[-1] == reference.tokenizer.eos_token_id
        m = policy.get("m", 400)
        reference.check(choice.prompt_token_ids, choice.token_ids, answer.alignment, m)

    def test_value_at_a_stop_string_is_that_of_the_kept_tokens(
        self, client: OpenAI, reference: Reference
    ) -> None:
        """The value is that of the tokens that were kept."""
        answer = complete(client, {**BLOCKWISE, "report": "trace"}, stop=["."], max_tokens=200)
        choice = answer.choices[0]
        reference.check(choice.prompt_token_ids, choice.token_ids, answer.alignment, 32)

    async def test_scores_of_sixteen_concurrent_requests_match_transformers(
        self, server: Served, reference: Reference
    ) -> None:
        """Rows move in the batch as others come and go; plain requests are among them."""
        bodies = [
            {
                **{"model": "demo", "prompt": tokens(5 + 13 * i, seed=8)},
                **{"max_tokens": 40 + 5 * i, "ignore_eos": True, "return_token_ids": True},
                "alignment": None if i % 4 == 3 else {**BLOCKWISE, "report": "trace"},
            }
            for i in range(16)
        ]
        async with server.async_client() as client:
            answers = await asyncio.gather(
                *(client.post("/v1/completions", json=body) for body in bodies)
            )
        for body, answer in zip(bodies, answers, strict=True):
            made = answer.raise_for_status().json()
            if body["alignment"] is not None:
                choice = made["choices"][0]
                reference.check(
                    choice["prompt_token_ids"], choice["token_ids"], made["alignment"], 32
                )

    def test_blocks_continue_by_token_ids_instead_of_text(
        self, client: OpenAI, reference: Reference
    ) -> None:
        """A hot text is not encoded to the tokens that wrote it; logprobs tell them apart."""
        policy = {**BLOCKWISE, "m": 8, "report": "trace"}
        fields = {"temperature": 2.0, "logprobs": 0, "max_tokens": 64, "ignore_eos": True}
        for seed in range(10):
            answer = complete(client, policy, seed=seed, **fields)
            choice = answer.choices[0]
            encoded = reference.tokenizer.encode(choice.text, add_special_tokens=False)
            if encoded[:32] != choice.token_ids[:32]:
                break
        assert encoded != choice.token_ids
        expected = reference.logprobs([*choice.prompt_token_ids, *choice.token_ids])
        assert choice.logprobs.token_logprobs == pytest.approx(
            expected[-len(choice.token_ids) :], abs=1e-3
        )
        reference.check(choice.prompt_token_ids, choice.token_ids, answer.alignment, 8)


@pytest.fixture(scope="module")
def paced_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a head whose values depend on the state and on the first 90 positions."""
    torch.manual_seed(0)
    config = HeadConfig(
        architecture="mlp",
        rewards=("paced",),
        hidden_size=256,
        mlp_width=16,
        position_limit=90,
        shift=(0.5,),
        scale=(2.0,),
        base_model="demo",
    )
    head = ValueHead(config)
    with torch.no_grad():
        head.net[0].weight[:, -POSITION_FEATURES:] *= 20
    head.save_pretrained(folder := tmp_path_factory.mktemp("heads") / "paced")
    return folder


@pytest.fixture(scope="module")
def paced_q_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Q-head whose values depend on the state and on the first 90 positions."""
    torch.manual_seed(0)
    config = HeadConfig(
        architecture="lowrank",
        rewards=("paced",),
        hidden_size=256,
        rank=4,
        vocab_size=1536,
        position_limit=90,
        shift=(0.0,),
        scale=(0.1,),
        base_model="demo",
    )
    head = QHead(config)
    with torch.no_grad():
        head.factor.weight[:, -POSITION_FEATURES:] = torch.randn(4, POSITION_FEATURES)
    head.save_pretrained(folder := tmp_path_factory.mktemp("heads") / "paced-q")
    return folder


@pytest.fixture(scope="module")
def confidences() -> test_confidence.Reference:
    return test_confidence.Reference()


@pytest.fixture(scope="module")
def paced(paced_head: Path) -> Reference:
    return Reference(head=paced_head)


@pytest.fixture(scope="module")
def small(
    tmp_path_factory: pytest.TempPathFactory, paced_head: Path, paced_q_head: Path
) -> Iterator[Served]:
    """A server that takes 64 tokens a step, with a KV cache of 24 blocks of 32 tokens."""
    config = json.loads((MODEL_DIR / "config.json").read_text())
    a_token = 2 * 4 * config["num_hidden_layers"] * config["num_key_value_heads"]
    cache = 24 * 32 * a_token * config["head_dim"]
    flags = ["--max-model-len", "704", "--kv-cache-memory-bytes", str(cache)]
    flags += ["--max-num-batched-tokens", "64", "--max-num-seqs", "16", "--enable-chunked-prefill"]
    settings = demo_settings(members={}, presets={})  # members would take part of the cache
    settings["rewards"] |= CONFIDENCES
    paced = {"kind": "value_head", "path": str(paced_head), "q_head": str(paced_q_head)}
    settings["rewards"]["paced"] = paced
    with Served(settings, tmp_path_factory.mktemp("small"), flags) as served:
        yield served


@pytest.mark.slow
class TestSmallServer:
    @pytest.mark.parametrize("length", [63, 64, 65, 650])
    @pytest.mark.parametrize("per_token", [False, True])
    def test_values_of_a_chunked_prefill_match_transformers(
        self, small: Served, reference: Reference, length: int, per_token: bool
    ) -> None:
        prompt = tokens(length, seed=4 + per_token)
        expected = reference.values([*prompt, *reference.ended(RESPONSE)])
        with small.client() as http:
            scored = score(http, prompt, per_token=per_token)
        assert scored["score"] == pytest.approx(expected[-1], abs=TOLERANCE)
        if per_token:
            values = scored["per_token"]["sentiment"]
            assert values == pytest.approx(expected[length:], abs=TOLERANCE)

    @pytest.mark.parametrize("length", [1, 64, 650])
    @pytest.mark.parametrize("per_token", [False, True])
    def test_values_of_a_head_with_positions_match_transformers(
        self, small: Served, paced: Reference, length: int, per_token: bool
    ) -> None:
        prompt = tokens(length, seed=12 + per_token)
        expected = paced.values([*prompt, *paced.ended(RESPONSE)], length)
        with small.client() as http:
            scored = score(http, prompt, per_token=per_token, reward="paced")
        assert scored["score"] == pytest.approx(expected[-1], abs=TOLERANCE)
        if per_token:
            values = scored["per_token"]["paced"]
            assert values == pytest.approx(expected[length:], abs=TOLERANCE)

    def test_blockwise_value_of_an_ended_response_has_its_position(
        self, small: Served, paced: Reference
    ) -> None:
        policy = {**BLOCKWISE, "m": 16, "rewards": {"paced": 1.0}, "report": "trace"}
        body = {
            **{"model": "demo", "prompt": 'Review of the film "The Glass Harbour":', "seed": 1},
            **{"max_tokens": 400, "return_token_ids": True, "alignment": policy},
        }
        with small.client() as http:
            answer = http.post("/v1/completions", json=body).raise_for_status().json()
        choice = answer["choices"][0]
        assert choice["token_ids"][-1] == paced.tokenizer.eos_token_id
        assert len(choice["token_ids"]) > 16, "several blocks, so that a prompt holds a block"
        paced.check(choice["prompt_token_ids"], choice["token_ids"], answer["alignment"], 16)

    def test_tilt_of_a_head_with_positions_matches_transformers(
        self, small: Served, paced_q_head: Path
    ) -> None:
        """Alone, and as the proposal of a search, whose later prompts hold blocks."""
        reference = Tilted(paced_q_head)
        tilt = {**TOKENWISE, "rewards": {"paced": 1.0}}
        search = {"method": "blockwise_cd", "k": 2, "m": 8, "rewards": {"paced": 1.0}}
        url = f"{small.base_url}/v1"
        fields = {"prompt": tokens(40, seed=14), "max_tokens": 40, "logprobs": 0}
        fields |= {"ignore_eos": True, "seed": None}
        with OpenAI(base_url=url, api_key="none", timeout=HANG_SECONDS) as client:
            alone = complete(client, tilt, **fields)
            searched = complete(client, {**search, "proposal": tilt}, **fields)
        check_tilted(reference, alone.choices[0], alone.alignment)
        choice = searched.choices[0]
        whole = [*choice.prompt_token_ids, *choice.token_ids]
        _, tilted = reference.logits(whole[:-1], BETA, None, len(choice.prompt_token_ids))
        log_p = tilted[-len(choice.token_ids) :].log_softmax(-1)
        taken = log_p[range(len(choice.token_ids)), choice.token_ids].tolist()
        assert choice.logprobs.token_logprobs == pytest.approx(taken, abs=2e-3)

    @pytest.mark.parametrize("reward", ["sentiment", "paced"])
    def test_values_after_preemption_match_transformers(
        self, small: Served, reference: Reference, paced: Reference, reward: str
    ) -> None:
        reference = {"sentiment": reference, "paced": paced}[reward]
        body = {
            **{"model": "demo", "prompt": tokens(200, seed=9), "max_tokens": 160, "n": 2},
            **{"ignore_eos": True, "return_token_ids": True},
        }
        for policy, m in [({"method": "best_of_n", "n": 6}, 160), ({**BLOCKWISE, "k": 6}, 32)]:
            body["alignment"] = {**policy, "rewards": {reward: 1.0}, "report": "trace"}
            with small.client() as http:
                answer = http.post("/v1/completions", json=body).raise_for_status().json()
            reports = answer["alignment"]["choices"]
            for choice, report in zip(answer["choices"], reports, strict=True):
                prompt = choice["prompt_token_ids"]
                reference.check(prompt, choice["token_ids"], report, m)
        assert small.metric("num_preemptions_total") > 0

    def test_confidences_after_preemption_match_transformers(
        self, small: Served, confidences: test_confidence.Reference
    ) -> None:
        """Of one that was preempted, a single token's are read anew."""
        before, prompt = small.metric("num_preemptions_total"), tokens(200, seed=13)
        body = {
            **{"model": "demo", "prompt": prompt, "max_tokens": 160, "n": 2},
            **{"ignore_eos": True, "return_token_ids": True},
        }
        for policy, m in [(test_confidence.BEST_OF_N, 160), (test_confidence.BLOCKWISE, 32)]:
            body["alignment"] = {**policy, **({"n": 6} if m == 160 else {"k": 6, "m": m})}
            with small.client() as http:
                answer = http.post("/v1/completions", json=body).raise_for_status().json()
            reports = answer["alignment"]["choices"]
            for choice, report in zip(answer["choices"], reports, strict=True):
                test_confidence.check_answer(confidences, prompt, choice, report, m)
        assert small.metric("num_preemptions_total") > before

    def test_confidences_of_a_text_in_chunks_match_transformers(
        self, small: Served, confidences: test_confidence.Reference
    ) -> None:
        """A response of several chunks of 64 tokens, behind a prompt of several."""
        prompt, text = tokens(200, seed=15), "It broke. " * 60
        body = {"model": "demo", "prompt": prompt, "responses": [text], "per_token": True}
        body["rewards"] = test_confidence.REWARDS
        with small.client() as http:
            scored = http.post("/v1/alignment/score", json=body).raise_for_status().json()
        ids = confidences.tokenizer.encode(text, add_special_tokens=False)
        assert len(ids) > 128
        expected = confidences.rewards(prompt, [*ids, confidences.tokenizer.eos_token_id])
        per_token = scored["scores"][0]["per_token"]
        for i, prefix in enumerate(expected):
            test_confidence.check({name: of[i] for name, of in per_token.items()}, prefix)

    def test_grammar_continues_across_blocks_after_preemption(self, small: Served) -> None:
        before = small.metric("num_preemptions_total")
        grammar = "((good|bad) ){25}end"
        body = {
            **{"model": "demo", "prompt": tokens(200, seed=12), "max_tokens": 160, "n": 2},
            **{"structured_outputs": {"regex": grammar}, "alignment": {**BLOCKWISE, "k": 6}},
        }
        with small.client() as http:
            answer = http.post("/v1/completions", json=body).raise_for_status().json()
        assert small.metric("num_preemptions_total") > before
        assert all(re.fullmatch(grammar, choice["text"]) for choice in answer["choices"])

    def test_path_kl_continues_after_preemption(self, small: Served) -> None:
        """Each prompt is computed in four chunks; KL goes on from where it was."""
        before = small.metric("num_preemptions_total")
        url = f"{small.base_url}/v1"
        with OpenAI(base_url=url, api_key="none", timeout=HANG_SECONDS) as client:
            answer = complete(
                client,
                TOKENWISE,
                prompt=tokens(200, seed=10),
                max_tokens=160,
                n=6,
                ignore_eos=True,
                logprobs=0,
                seed=None,  # vLLM on CPU dies of a seeded prompt that is computed in chunks
            )
        assert small.metric("num_preemptions_total") > before
        reference = Tilted()
        for choice, report in zip(answer.choices, answer.alignment["choices"], strict=True):
            check_tilted(reference, choice, report)
