"""Cost of the built-in rewards: for plain requests that do not ask for them, and for best-of-K.

Two servers run the same model: one with vLLM's own worker (`rewards: {}`), one with cdserve's, as a
model without settings has it. Each round sends the same prompts to both, in alternating order: K
plain samples of each, and to the second best-of-K by vote and by each confidence. Figures are
medians over the rounds of processor seconds per thousand tokens, which depend little on other
work on the machine, and of tokens per second relative to plain samples of vLLM's worker.

    python benchmarks/confidence_cost.py --rounds 24
"""

import argparse
import asyncio
import json
import statistics
from collections.abc import Mapping
from typing import Any

from models import MODELS, machine, model
from overhead import Client, Cost, K, prompt_ids
from server import Server

_PROMPTS = [24, 33, 41, 57, 64, 78]
PLAIN: dict[str, Any] = {"n": K}
BEST: dict[str, Any] = {"method": "best_of_n", "n": K}
ARMS: Mapping[str, tuple[bool, dict[str, Any]]] = {
    "plain, vLLM's worker": (False, PLAIN),
    "plain, cdserve's worker": (True, PLAIN),
    "best_of_n, vote": (
        True,
        {"alignment": {**BEST, "selection": {"vote": {"extract": "last_number"}}}},
    ),
    "best_of_n, self_certainty": (True, {"alignment": {**BEST, "rewards": {"self_certainty": 1}}}),
    "best_of_n, deepconf": (True, {"alignment": {**BEST, "rewards": {"deepconf": 1}}}),
}
"""Whether cdserve's worker runs, and fields of the requests."""


async def measure(clients: Mapping[bool, Client], rounds: int, concurrency: int) -> dict[str, Any]:
    """Figures by arm."""
    made: dict[str, list[Cost]] = {name: [] for name in ARMS}
    names = list(ARMS)
    for i in range(rounds + 1):
        prompts = [prompt_ids(_PROMPTS, seed=i * 1000 + c) for c in range(concurrency)]
        turn = i % len(names)
        for name in [*names[turn:], *names[:turn]]:
            wrapped, fields = ARMS[name]
            cost = await clients[wrapped].cost(fields, prompts)
            if i:  # the first round warms up
                made[name].append(cost)
    first = made[names[0]]
    return {
        name: {
            "engine_s_per_1000_tokens": statistics.median(cost.engine_s for cost in costs),
            "server_s_per_1000_tokens": statistics.median(cost.server_s for cost in costs),
            "ratio": statistics.median(
                cost.rate / plain.rate for cost, plain in zip(costs, first, strict=True)
            ),
        }
        for name, costs in made.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(MODELS), default="demo")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=64, help="tokens per candidate")
    args = parser.parse_args()
    config = model(args.model).bare_config()
    with Server(config, "--set", "rewards={}") as own, Server(config) as wrapped:
        clients = {False: Client(own, args.tokens), True: Client(wrapped, args.tokens)}
        figures = asyncio.run(measure(clients, args.rounds, args.concurrency))
    print(json.dumps({"machine": machine(), **figures}, indent=2))


if __name__ == "__main__":
    main()
