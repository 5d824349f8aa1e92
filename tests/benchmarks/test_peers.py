"""The peers' loops draw from the laws they are compared for, and the table says who is ahead."""

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.peers.driver import Answer, closed_loop
from benchmarks.peers.report import ahead, summary
from benchmarks.peers.rows import ROWS
from benchmarks.peers.with_transformers import Response, best_blocks, guided_by_q, guided_by_v
from tests.waiting import turns
from value_heads import HeadConfig, QHead, ValueHead

VOCABULARY, END, WIDTH = 5, 0, 16
PROMPT = [3, 1, 4]
MAX_TOKENS = 2

Law = dict[tuple[int, ...], float]
NextToken = Callable[[list[int]], torch.Tensor]
"""Probabilities of the next token behind a prefix."""


def config(**architecture: Any) -> HeadConfig:
    return HeadConfig(
        rewards=("r",),
        hidden_size=WIDTH,
        shift=(0.0,),
        scale=(1.0,),
        base_model="tiny",
        **architecture,
    )


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    tiny = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
    )
    return LlamaForCausalLM(tiny).eval()


@pytest.fixture(scope="module")
def head() -> ValueHead:
    torch.manual_seed(1)
    return ValueHead(config(architecture="linear")).requires_grad_(False)


@pytest.fixture(scope="module")
def q_head() -> QHead:
    torch.manual_seed(2)
    made = QHead(config(architecture="lowrank", rank=4, vocab_size=VOCABULARY))
    torch.nn.init.normal_(made.factor.weight, std=0.5)
    return made.requires_grad_(False)


@torch.inference_mode()
def state(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    """The state behind a prefix, without any cache, batch or padding."""
    return model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]


@torch.inference_mode()
def base(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    return model.lm_head(state(model, ids)).softmax(-1)


def law(next_token: NextToken, length: int = MAX_TOKENS) -> Law:
    """The probability of every response of at most ``length`` tokens."""
    found: Law = {}
    for tokens in product(range(VOCABULARY), repeat=length):
        cut = tokens[: tokens.index(END) + 1] if END in tokens else tokens
        found[cut] = 1.0
        for i, token in enumerate(cut):
            found[cut] *= float(next_token([*PROMPT, *cut[:i]])[token])
    return found


def best_of(k: int, law: Law, value: Callable[[tuple[int, ...]], float]) -> Law:
    """The law of the best of k draws: F(v)^k less the same just below v."""
    below, found = 0.0, {}
    for tokens in sorted(law, key=value):
        found[tokens] = (below + law[tokens]) ** k - below**k
        below += law[tokens]
    return found


def drawn(respond: Callable[[], Response], count: int) -> Law:
    torch.manual_seed(3)
    with torch.inference_mode():
        counts = Counter(tuple(respond().tokens) for _ in range(count))
    return {tokens: n / count for tokens, n in counts.items()}


def distance(one: Law, other: Law) -> float:
    """Total variation."""
    return sum(abs(one.get(t, 0.0) - other.get(t, 0.0)) for t in {*one, *other}) / 2


def check(found: Law, expected: Law, plain: Law, within: float) -> None:
    assert sum(expected.values()) == pytest.approx(1, abs=1e-4)
    assert distance(expected, plain) > 2 * within, "the two laws are too close to tell"
    assert distance(found, expected) < within


def test_q_guided_loop_draws_from_the_tilted_distribution(
    model: LlamaForCausalLM, q_head: QHead
) -> None:
    beta = 0.5

    def tilted(ids: list[int]) -> torch.Tensor:
        weights = base(model, ids) * (q_head(state(model, ids))[0] / beta).exp()
        return weights / weights.sum()

    found = drawn(lambda: guided_by_q(model, q_head, PROMPT, beta=beta, max_tokens=MAX_TOKENS), 150)
    check(found, law(tilted), law(lambda ids: base(model, ids)), within=0.15)


def test_v_guided_loop_draws_from_the_tilted_distribution_of_top_tokens(
    model: LlamaForCausalLM, head: ValueHead
) -> None:
    beta, top_k = 0.2, 3

    def tilted(ids: list[int]) -> torch.Tensor:
        p = base(model, ids)
        weights = torch.zeros(VOCABULARY)
        for z in p.topk(top_k).indices.tolist():
            weights[z] = p[z] * (head(state(model, [*ids, z]))[0] / beta).exp()
        return weights / weights.sum()

    found = drawn(
        lambda: guided_by_v(model, head, PROMPT, beta=beta, top_k=top_k, max_tokens=MAX_TOKENS),
        120,
    )
    check(found, law(tilted), law(lambda ids: base(model, ids)), within=0.15)


def test_best_block_loop_draws_from_the_best_of_k_distribution(
    model: LlamaForCausalLM, head: ValueHead
) -> None:
    k = 4
    plain = law(lambda ids: base(model, ids))

    def value(tokens: tuple[int, ...]) -> float:
        return float(head(state(model, [*PROMPT, *tokens])))

    whole = best_of(k, plain, value)

    def best_token(ids: list[int]) -> torch.Tensor:
        p = base(model, ids)
        one: Law = {(z,): float(p[z]) for z in range(VOCABULARY)}
        chosen = best_of(k, one, lambda z: value((*ids[len(PROMPT) :], *z)))
        return torch.tensor([chosen[(z,)] for z in range(VOCABULARY)])

    for m, expected in ((1, law(best_token)), (2, whole)):
        found = drawn(
            lambda m=m: best_blocks(model, head, PROMPT, k=k, m=m, max_tokens=MAX_TOKENS), 60
        )
        check(found, expected, plain, within=0.15)


def test_loops_count_generated_tokens(
    model: LlamaForCausalLM, head: ValueHead, q_head: QHead
) -> None:
    torch.manual_seed(4)
    with torch.inference_mode():
        by_q = guided_by_q(model, q_head, PROMPT, beta=1.0, max_tokens=6)
        by_v = guided_by_v(model, head, PROMPT, beta=1.0, top_k=3, max_tokens=6)
        blocks = best_blocks(model, head, PROMPT, k=4, m=2, max_tokens=6)
    for made in (by_q, by_v, blocks):
        assert END not in made.tokens[:-1]
        assert len(made.tokens) == 6 or made.tokens[-1] == END
    assert (by_q.decoded, by_q.read) == (len(by_q.tokens), len(PROMPT))
    assert (by_v.decoded, by_v.read) == (3 * len(by_v.tokens), len(PROMPT))
    assert len(blocks.tokens) <= blocks.decoded <= 4 * 6
    assert blocks.read >= 2 * 4 * len(PROMPT)


def test_closed_loop_keeps_a_constant_number_of_requests_in_flight() -> None:
    under_way, most = 0, 0

    async def answer(prompt: str) -> Answer:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await turns()
        under_way -= 1
        return Answer(text=prompt.upper())

    run = asyncio.run(closed_loop(answer, list("abcdefg"), 3))
    assert most == 3
    assert [one.text for one in run.answers] == list("ABCDEFG")
    assert len(run.latencies) == 7
    assert 0 < max(run.latencies) <= run.elapsed


def test_peer_is_ahead_only_beyond_the_spread_of_rounds() -> None:
    def runs(*elapsed: float, gold: float = 0.5) -> dict[str, Any]:
        one = {"latencies": [0.1] * 4, "decoded": 8.0, "read": 2.0, "value": [0.1, 0.2] * 2}
        scores = [gold, gold + 0.1, gold, gold + 0.1]
        return {"1": [{**one, "elapsed": seconds, "gold": scores} for seconds in elapsed]}

    measured = {row.name: runs(2.0, 2.0) for row in ROWS}
    measured["its_hub"] = runs(1.0, 0.5)  # faster in both rounds
    measured["vLLM n=K"] = runs(1.0, 2.5)  # in one only
    measured["optillm"] = runs(4.0, 4.0, gold=0.9)  # slower, and better
    rows = summary(measured)
    assert rows["its_hub"]["1"]["ratio"] == [3.0, 2.0, 4.0]
    assert rows["its_hub"]["1"]["requests_per_s"] == [6.0, 4.0, 8.0]
    setting = {"k": 8, "m": 32, "beam_width": 4, "beta": 0.3, "top_k": 10}
    first, second = ahead({"rows": rows, "setting": setting})
    assert first.startswith("its_hub")
    assert "3.00 times" in first
    assert second.startswith("optillm")
    assert "higher by 0.40" in second
