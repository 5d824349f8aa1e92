"""What steering costs in the engine, and what it gains over a plain Transformers loop.

Rounds alternate, in an order that rotates, over plain decoding, token-wise CD, logit mixing, and a
crowd of all policies, each with the same prompts and tokens. Mixing is held against the summed time
of its members, each served alone. The loop decodes one prompt at a time, with the same Q-head in a
LogitsProcessor, as research code does.

    python benchmarks/in_engine.py --output benchmarks/results/in_engine.json
"""

import argparse
import asyncio
import json
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import torch
from models import demo_config, machine, member_config
from overhead import prompt_ids
from server import Server
from transformers import LogitsProcessor

from cdserve.demo import MODEL_DIR, Q_HEAD_DIR
from cdserve.demo.folders import load_model
from value_heads import QHead

TILT = {"method": "tokenwise_cd", "beta": 0.1}
MIX = {"method": "logit_mixing", "weights": {"base": 0.4, "tuned": 0.3, "ref": 0.3}}
POLICIES: dict[str, list[dict[str, Any] | None]] = {
    "plain": [None],
    "tokenwise_cd": [{**TILT, "report": "none"}],
    "tokenwise_cd, reported": [TILT],
    "logit_mixing": [{**MIX, "report": "none"}],
    "crowd": [None, TILT, MIX, {**TILT, "top_k": 20}, {**TILT, "proposal": MIX}],
}


async def tokens_per_second(
    client: httpx2.AsyncClient,
    policies: list[dict[str, Any] | None],
    prompts: list[list[int]],
    tokens: int,
) -> float:
    """Of all prompts at once, policies taken in turn."""
    start = time.perf_counter()
    await asyncio.gather(
        *(
            complete(client, policies[i % len(policies)], prompt, tokens)
            for i, prompt in enumerate(prompts)
        )
    )
    return len(prompts) * tokens / (time.perf_counter() - start)


async def complete(
    client: httpx2.AsyncClient, policy: dict[str, Any] | None, prompt: list[int], tokens: int
) -> None:
    body = {"model": "bench", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
    body |= {} if policy is None else {"alignment": policy}
    (await client.post("/v1/completions", json=body)).raise_for_status()


async def measure(urls: dict[str, str], args: argparse.Namespace, concurrency: int) -> Any:
    """One table row: ratios of the arms' median rates."""
    rates: dict[str, list[float]] = {}
    clients = {name: httpx2.AsyncClient(base_url=url, timeout=600) for name, url in urls.items()}
    arms = [("base", name, POLICIES[name]) for name in POLICIES]
    arms += [(name, name, [None]) for name in ("tuned", "ref")]
    for i in range(args.rounds + 1):
        prompts = [prompt_ids([24, 33, 41, 57], seed=i * 1000 + c) for c in range(concurrency)]
        for server, arm, policies in [*arms[i % len(arms) :], *arms[: i % len(arms)]]:
            rate = await tokens_per_second(clients[server], policies, prompts, args.tokens)
            if i:  # the first round warms up
                rates.setdefault(arm, []).append(rate)
    for client in clients.values():
        await client.aclose()
    median = {arm: statistics.median(found) for arm, found in rates.items()}
    alone = sum(1 / median[name] for name in ("plain", "tuned", "ref"))
    return {
        "concurrency": concurrency,
        "tokens_per_s": median,
        "tokenwise_cd_over_plain": median["tokenwise_cd"] / median["plain"],
        "logit_mixing_over_summed_members": median["logit_mixing"] * alone,
        "crowd_over_plain": median["crowd"] / median["plain"],
    }


class Tilt(LogitsProcessor):  # type: ignore[misc]
    """The tilt as a plain loop has it: the head on the last hidden state, kept by a hook."""

    def __init__(self, model: Any) -> None:
        self._head = QHead.from_pretrained(Q_HEAD_DIR)
        self._hidden = torch.zeros(1, model.config.hidden_size)
        model.model.register_forward_hook(self._keep)

    def _keep(self, module: Any, inputs: Any, output: Any) -> None:
        self._hidden = output.last_hidden_state[:, -1]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + self._head(self._hidden)[:, 0] / TILT["beta"]


@torch.inference_mode()
def loop_rate(tokens: int, count: int) -> float:
    """Tokens per second of token-wise CD in Transformers, one prompt at a time."""
    model = load_model(MODEL_DIR)
    processor = Tilt(model)

    def generate(seed: int) -> None:
        ids = torch.tensor([prompt_ids([41], seed)])
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            logits_processor=[processor],
        )

    generate(0)
    start = time.perf_counter()
    for seed in range(1, count + 1):
        generate(seed)
    return tokens * count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    loop = loop_rate(args.tokens, count=8)
    results: list[dict[str, Any]] = []
    with ExitStack() as stack:
        configs = {
            "base": demo_config(),
            "tuned": member_config("tuned"),
            "ref": member_config("ref"),
        }
        urls = {n: stack.enter_context(Server(config)).base_url for n, config in configs.items()}
        for concurrency in args.concurrency:
            row = asyncio.run(measure(urls, args, concurrency))
            row["tokenwise_cd_over_loop"] = row["tokens_per_s"]["tokenwise_cd"] / loop
            results.append(row)
            print(json.dumps(row), flush=True)
    if args.output:
        made = {"model": "demo", "tokens": args.tokens, "rounds": args.rounds, "machine": machine()}
        made |= {"loop_tokens_per_s": loop, "results": results}
        args.output.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
