"""Reward per token drawn: best-of-n, speculative rejection, blockwise CD, beams, schedules.

Ground-truth reward of held-out prompts on the demo, and the tokens drawn for it. Every policy is
compared with best-of-16, prompt by prompt: the mean difference of the reward with its 95 %
interval, and the share of the tokens drawn.

    python benchmarks/search.py --prompts 256 --output benchmarks/results/search.json
"""

import asyncio
import statistics
from collections.abc import Sequence
from typing import Any

from frontier import arguments, held_out, settings, write
from quality import Answer, Evaluation, mean_ci
from server import Server

AGAINST = "best-of-16"


def speculative(n: int, alpha: float, m: int = 16) -> dict[str, Any]:
    return {"method": "speculative_rejection", "n": n, "alpha": alpha, "m": m}


def blockwise(k: int | list[int], beam_width: int = 1) -> dict[str, Any]:
    return {"method": "blockwise_cd", "k": k, "m": 32, "beam_width": beam_width}


POLICIES: dict[str, dict[str, Any]] = {
    **{f"best-of-{n}": {"method": "best_of_n", "n": n} for n in (4, 8, 16)},
    **{f"speculative 16, α={a:g}": speculative(16, a) for a in (0.25, 0.5, 0.75)},
    "speculative 16, α=0.5, M=32": speculative(16, 0.5, 32),
    **{f"speculative 32, α={a:g}": speculative(32, a) for a in (0.5, 0.75)},
    "blockwise K=4": blockwise(4),
    "blockwise K=8": blockwise(8),
    "blockwise K=8, 4, 2": blockwise([8, 4, 2]),
    "2 beams of K=2": blockwise(2, 2),
    "2 beams of K=4": blockwise(4, 2),
    "4 beams of K=2": blockwise(2, 4),
}


def row(answers: Sequence[Answer], against: Sequence[Answer]) -> dict[str, Any]:
    """A policy's figures; reward and differences with half their 95 % intervals."""
    drawn = sum(a.candidate_tokens for a in answers)
    return {
        "reward": mean_ci([a.gold for a in answers]),
        "difference": mean_ci([a.gold - b.gold for a, b in zip(answers, against, strict=True)])
        if answers is not against
        else [0.0, 0.0],
        "kl_bound": statistics.mean(a.kl_bound for a in answers),
        "tokens_drawn": drawn / len(answers),
        "share_of_tokens": drawn / sum(b.candidate_tokens for b in against),
    }


async def measure(base_url: str, prompts: Sequence[str], concurrency: int) -> dict[str, Any]:
    evaluation = Evaluation(base_url, concurrency)
    answers = {n: await evaluation.run(prompts, one, n) for n, one in POLICIES.items()}
    return {name: row(found, answers[AGAINST]) for name, found in answers.items()}


def main() -> None:
    args = arguments(__doc__, plots=False)
    prompts = held_out(args.prompts)
    with Server(settings()) as server:
        rows = asyncio.run(measure(server.base_url, prompts, args.concurrency))
    for name, made in rows.items():
        (reward, ci), (more, more_ci) = made["reward"], made["difference"]
        print(
            f"{name:28s} {reward:+.3f} ± {ci:.3f}   {more:+.3f} ± {more_ci:.3f}   "
            f"{made['tokens_drawn']:6.0f} tokens, {made['share_of_tokens']:.2f}   "
            f"KL ≤ {made['kl_bound']:.2f}"
        )
    write(args, prompts, policies=rows)


if __name__ == "__main__":
    main()
