"""Cost of steering in the engine, and its speed relative to a Transformers loop.

Each round runs the same prompts in a rotating order: plain decoding, token-wise CD, logit mixing
and a mix of all policies on one server; plain decoding of the base without heads and members, and
of each member, on separate servers; and the policies in a Transformers loop, one prompt at a time.
A ratio is the ratio of median rates, with the quartiles of the per-round ratios.

    python benchmarks/in_engine.py --model demo --output benchmarks/results/in_engine.json
    python benchmarks/in_engine.py --model 100m --concurrency 1 8 --rounds 5 --tokens 48 \
        --output benchmarks/results/in_engine-100m.json
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import torch
from models import Model, machine, model
from overhead import prompt_ids
from server import Server
from transformers import AutoModelForCausalLM, DynamicCache, LogitsProcessor

from value_heads import QHead

Policy = dict[str, Any] | None
Arm = Callable[[list[list[int]]], Awaitable[float]]
"""Tokens per second over the given prompts."""

BETA = 0.1
WEIGHTS = {"base": 0.4, "tuned": 0.3, "ref": 0.3}
TILT = {"method": "tokenwise_cd", "beta": BETA}
MIX = {"method": "logit_mixing", "weights": WEIGHTS}
POLICIES: dict[str, list[Policy]] = {
    "plain": [None],
    "tokenwise_cd": [{**TILT, "report": "none"}],
    "tokenwise_cd, KL reported": [TILT],
    "logit_mixing": [{**MIX, "report": "none"}],
    "crowd": [None, TILT, MIX, {**TILT, "top_k": 20}, {**TILT, "proposal": MIX}],
}


async def served(
    client: httpx2.AsyncClient, policies: Sequence[Policy], tokens: int, prompts: list[list[int]]
) -> float:
    """Tokens per second of all prompts concurrently; the policies alternate."""
    start = time.perf_counter()
    bodies = [
        {"model": "bench", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
        | ({} if policy is None else {"alignment": policy})
        for prompt, policy in zip(prompts, policies * len(prompts), strict=False)
    ]
    answers = await asyncio.gather(*(client.post("/v1/completions", json=b) for b in bodies))
    for answer in answers:
        answer.raise_for_status()
    return len(prompts) * tokens / (time.perf_counter() - start)


class Tilt(LogitsProcessor):  # type: ignore[misc]
    """Tilts by the Q-head of the last hidden state, which a forward hook stores."""

    def __init__(self, base: Any, q_head: Path) -> None:
        self._head = QHead.from_pretrained(q_head)
        base.model.register_forward_hook(self._keep)

    def _keep(self, module: Any, inputs: Any, output: Any) -> None:
        self._hidden = output.last_hidden_state[:, -1]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        delta = self._head(self._hidden)[:, 0] / BETA
        scores[:, : delta.shape[1]] += delta
        return scores


class Mix(LogitsProcessor):  # type: ignore[misc]
    """Mixes the logits of members that run one after the other, each with its own KV cache."""

    def __init__(self, members: Mapping[str, Any]) -> None:
        self._members = members
        self._caches: dict[str, DynamicCache] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        mixed = WEIGHTS["base"] * scores
        for name, member in self._members.items():
            cache = self._caches.get(name)
            if cache is None or cache.get_seq_length() != input_ids.shape[1] - 1:  # a new prompt
                cache = self._caches[name] = DynamicCache()
            new = input_ids[:, cache.get_seq_length() :]
            output = member(new, past_key_values=cache, logits_to_keep=1)
            mixed += WEIGHTS[name] * output.logits[:, -1]
        return mixed


@torch.inference_mode()
def generate(base: Any, processor: LogitsProcessor, tokens: int, prompt: list[int]) -> float:
    """Tokens per second of Transformers' ``generate`` for one prompt."""
    start = time.perf_counter()
    ids = torch.tensor([prompt])
    base.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        logits_processor=[processor],
    )
    return tokens / (time.perf_counter() - start)


def loops(of: Model, tokens: int) -> dict[str, Arm]:
    """The policies in Transformers; of several prompts the first, whose rate is that of all."""
    load = partial(AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
    base = load(of.base).eval()
    members = {name: load(path).eval() for name, path in of.members.items()}

    def arm(processor: LogitsProcessor) -> Arm:
        return lambda prompts: asyncio.to_thread(generate, base, processor, tokens, prompts[0])

    return {
        "tokenwise_cd, loop": arm(Tilt(base, of.q_head)),
        "logit_mixing, loop": arm(Mix(members)),
    }


async def measure(arms: Mapping[str, Arm], concurrency: int, rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each arm in each round."""
    rates: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for i in range(rounds + 1):
        prompts = [prompt_ids([24, 33, 41, 57], seed=i * 1000 + c) for c in range(concurrency)]
        for name in [*names[i % len(names) :], *names[: i % len(names)]]:
            rate = await arms[name](prompts)
            if i:  # the first round warms up
                rates[name].append(rate)
    return rates


def row(rates: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Medians, and the ratios that matter with their quartiles over rounds."""

    def ratio(of: str, *to: str) -> dict[str, Any]:
        def one(rate: Mapping[str, float]) -> float:
            return rate[of] * sum(1 / rate[name] for name in to)

        rounds = [dict(zip(rates, r, strict=True)) for r in zip(*rates.values(), strict=True)]
        low, _, high = statistics.quantiles(map(one, rounds), n=4)
        medians = {name: statistics.median(found) for name, found in rates.items()}
        return {"ratio": one(medians), "quartiles": [low, high]}

    return {
        "tokens_per_s": {name: statistics.median(found) for name, found in rates.items()},
        "plain over base alone": ratio("plain", "base alone"),
        "tokenwise_cd over plain": ratio("tokenwise_cd", "plain"),
        "tokenwise_cd, KL reported over plain": ratio("tokenwise_cd, KL reported", "plain"),
        "logit_mixing over summed members": ratio("logit_mixing", "plain", "tuned", "ref"),
        "crowd over plain": ratio("crowd", "plain"),
        "tokenwise_cd over loop": ratio("tokenwise_cd", "tokenwise_cd, loop"),
        "logit_mixing over loop": ratio("logit_mixing", "logit_mixing, loop"),
    }


async def run(urls: Mapping[str, str], of: Model, args: argparse.Namespace) -> list[Any]:
    """The table, a row a concurrency."""
    table = []
    clients = {name: httpx2.AsyncClient(base_url=url, timeout=600) for name, url in urls.items()}
    arms: dict[str, Arm] = {
        name: partial(served, clients["steered"], policies, args.tokens)
        for name, policies in POLICIES.items()
    }
    for name in ("base alone", *of.members):
        arms[name] = partial(served, clients[name], [None], args.tokens)
    arms |= loops(of, args.tokens)
    for concurrency in args.concurrency:
        rates = await measure(arms, concurrency, args.rounds)
        table.append({"concurrency": concurrency, **row(rates)})
        print(json.dumps(table[-1]), flush=True)
    for client in clients.values():
        await client.aclose()
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["demo", "100m"], default="demo")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    of = model(args.model)
    configs = {"steered": of.config(), "base alone": of.plain_config()}
    configs |= {name: of.plain_config(name) for name in of.members}
    with ExitStack() as stack:
        urls = {n: stack.enter_context(Server(c)).base_url for n, c in configs.items()}
        results = asyncio.run(run(urls, of, args))
    if args.output:
        made = {key: getattr(args, key) for key in ("model", "tokens", "rounds")}
        made |= {"machine": machine(), "results": results}
        args.output.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
