"""Blockwise CD against best-of-n for an additive reward, by exact values through the server.

Every sentence of the grammar ``benchmarks/additive_reward.py`` draws its own sentiment, so that
the reward adds up along the answer of 128 tokens. A table of tokens is the model, and V* is exact:
no figure contains the error of a head. One series adds noise to V* in place of that error. The
distribution of the reward is known too, so the expected rewards of best-of-n and of blockwise CD
are exact; pools of served draws check those of best-of-n.

If rewards of blocks are independent and normal, B blocks of K candidates gain sqrt(B) c_K standard
deviations, c_K being the expected maximum of K standard normals, and best-of-n gains c_n.

    python benchmarks/additive.py --output benchmarks/results/additive.json
"""

import argparse
import asyncio
import json
import math
import os
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import additive_reward as grammar
import numpy as np
from demos import demo
from intervals import mean_ci
from length import Floats, equal_n, n_at_kl
from models import machine
from openai import AsyncOpenAI
from server import Server

from cdserve.evaluation.curves import best_of_n_mean
from tests.server.tabular import FIRST, NEVER, build_model

SIZES = (2, 4, 8)
"""K, candidates per block."""
BLOCKS = (64, 32, 16)
"""M, tokens per block: 2, 4 and 8 blocks."""
POOL_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
POOL = 256
"""Draws of one pool."""
CHOICES = 16
"""Answers of one request."""
LARGEST = 1 << 16
"""Largest n of the exact curve of best-of-n."""
RESAMPLES = 2000
GRID = np.linspace(-12, 12, 6001)
DENSITY = np.exp(-(GRID**2) / 2) / math.sqrt(2 * math.pi)
LOG_DISTRIBUTION = np.log([math.erfc(-x / math.sqrt(2)) / 2 for x in GRID])


def normal_maximum(n: float) -> float:
    """Expected maximum of n standard normals, c_n; n may be real."""
    density = n * DENSITY * np.exp((n - 1) * LOG_DISTRIBUTION)
    return float(np.trapezoid(GRID * density, GRID))


def normal_n(gain: float) -> float:
    """The real n whose c_n is this gain, in standard deviations."""
    low, high = 0.0, 25.0  # of log n
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if normal_maximum(math.exp(middle)) > gain else (middle, high)
    return math.exp(low)


def sentence_sums() -> Floats:
    """Probabilities of the sums of a sentence's valences, from -2 to 2."""
    sums = [np.convolve(grammar.CHANCES[s], grammar.CHANCES[s]) for s in grammar.SENTIMENTS]
    return np.asarray(np.mean(sums, axis=0))


def text_sums(sentences: int) -> Floats:
    """Probabilities of the sums of the valences of whole sentences, from the least sum upwards."""
    sums = np.ones(1)
    for _ in range(sentences):
        sums = np.convolve(sums, sentence_sums())
    return sums


def best_of(sums: Floats, sizes: Sequence[int]) -> Floats:
    """Expected maximum of n independent sums for every n, as a mean valence of an answer."""
    below = np.concatenate([[0.0], np.minimum(np.cumsum(sums), 1.0)])
    values = np.arange(len(sums)) - len(sums) // 2
    maximum = np.array([values @ np.diff(below**n) for n in sizes])
    return maximum / (grammar.SENTENCES * grammar.PHRASES)


class Answer(NamedTuple):
    """Reward of one answer, tokens of all candidates, and the KL bound in nats."""

    reward: float
    drawn: int
    kl_bound: float


class Experiment:
    """The requests of the experiment, a bounded number at once."""

    def __init__(self, base_url: str, concurrency: int) -> None:
        self._client = AsyncOpenAI(base_url=f"{base_url}/v1", api_key="-", max_retries=0)
        self._slots = asyncio.Semaphore(concurrency)

    async def pools(self, count: int) -> Floats:
        """Rewards of plain draws, [count, POOL]."""
        names = [f"pool/{i}" for i in range(count)]
        pools = await asyncio.gather(*(self._complete(name, POOL, {}) for name in names))
        return np.array([[grammar.reward(c.text) for c in pool.choices] for pool in pools])

    async def answers(self, policy: dict[str, Any], count: int) -> list[Answer]:
        """Answers by a policy."""
        names = [f"{json.dumps(policy)}/{i}" for i in range(count // CHOICES)]
        completions = await asyncio.gather(
            *(self._complete(name, CHOICES, {"alignment": policy}) for name in names)
        )
        return [
            Answer(grammar.reward(choice.text), report["candidate_tokens"], report["kl"]["bound"])
            for completion in completions
            for choice, report in zip(
                completion.choices, completion.model_extra["alignment"]["choices"], strict=True
            )
        ]

    async def _complete(self, name: str, count: int, fields: dict[str, Any]) -> Any:
        async with self._slots:
            return await self._client.completions.create(
                model="demo",
                prompt=[FIRST],
                n=count,
                max_tokens=grammar.TOKENS,
                seed=zlib.crc32(name.encode()),
                extra_body={"ignore_eos": True, **fields},
            )


def figures(answers: Sequence[Answer], curve: Floats) -> dict[str, Any]:
    """Means over the answers of a policy, and the n of best-of-n with the same reward.

    Args:
        answers: answers by the policy.
        curve: expected reward of best-of-n for n = 1, 2, ....
    """
    rewards = np.array([answer.reward for answer in answers])
    samples = np.random.default_rng(0).choice(rewards, (RESAMPLES, len(rewards))).mean(1)
    nats = float(np.mean([answer.kl_bound for answer in answers]))
    limits = np.quantile(samples, [0.025, 0.975])
    return {
        "answers": len(answers),
        "reward": mean_ci(rewards.tolist()),
        "tokens_drawn": float(np.mean([answer.drawn for answer in answers])),
        "kl_bound": nats,
        "equals_best_of": _finite(equal_n(float(rewards.mean()), curve)),
        "equals_best_of_95": [_finite(equal_n(float(limit), curve)) for limit in limits],
        "ceiling_best_of": n_at_kl(nats),
    }


def _finite(n: float) -> float | None:
    """n; None for infinity, which stands for an n beyond the curve."""
    return n if math.isfinite(n) else None


def settings(folder: Path) -> Path:
    """Settings that serve the grammar's table, V*, and V* with noise."""
    build_model(grammar.table(NEVER), 32, folder)
    rewards = {
        name: {"kind": "python", "callable": f"additive_reward:{name}", "prefixes": True}
        for name in ("value", "noisy_value")
    }
    engine = {
        **{"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "block_size": 32},
        **{"kv_cache_memory_bytes": 512 << 20, "max_num_seqs": 256},
    }
    changes: dict[str, Any] = {"model": str(folder), "playground": False, "engine": engine}
    return demo("tiny").settings(rewards=rewards, default_reward="value", **changes)


async def measure(base_url: str, args: argparse.Namespace) -> dict[str, Any]:
    """The pools, and the figures of every policy."""
    experiment = Experiment(base_url, args.concurrency)
    curve = best_of(text_sums(grammar.SENTENCES), range(1, LARGEST + 1))
    pools = await experiment.pools(args.pools)
    results: dict[str, Any] = {"pools": args.pools, "best_of_n": {}, "policies": []}
    for n in POOL_SIZES:
        row = {
            "exact": float(curve[n - 1]),
            "pools": mean_ci([best_of_n_mean(pool, pool, n) for pool in pools]),
        }
        results["best_of_n"][str(n)] = row
        mean, half = row["pools"]
        print(f"best-of-{n:<3d} {row['exact']:.4f}, pools {mean:.4f} ± {half:.4f}", flush=True)
    series = [("value", m) for m in BLOCKS] + [("noisy_value", grammar.NOISY_BLOCK)]
    for reward, m in series:
        blocks = grammar.TOKENS // m
        for k in SIZES:
            policy = {"method": "blockwise_cd", "k": k, "m": m, "rewards": {reward: 1.0}}
            answers = await experiment.answers(policy, args.answers)
            gain = math.sqrt(blocks) * normal_maximum(k)
            row = {"values": reward, "m": m, "blocks": blocks, "k": k, **figures(answers, curve)}
            if reward == "value":
                exact = blocks * float(best_of(text_sums(m // grammar.SENTENCE), [k])[0])
                row |= {"exact_reward": exact, "exact_best_of": equal_n(exact, curve)}
            else:
                gain *= grammar.ACCURACY
            row["normal_best_of"] = normal_n(gain)
            results["policies"].append(row)
            show(row)
    return results


def show(row: dict[str, Any]) -> None:
    """Prints the figures of a policy."""
    reward, half = row["reward"]
    n, low, high = (
        f"> {LARGEST}" if number is None else f"{number:.1f}"
        for number in (row["equals_best_of"], *row["equals_best_of_95"])
    )
    exact = f", exact {row['exact_best_of']:.1f}" if "exact_best_of" in row else ""
    print(
        f"{row['values']:11s} M={row['m']:<2d} K={row['k']}: {reward:.4f} ± {half:.4f}, equals "
        f"best-of-{n} [{low}, {high}]{exact}, normal {row['normal_best_of']:.1f}, ceiling "
        f"{row['ceiling_best_of']:.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=1024, help="answers per policy")
    parser.add_argument("--pools", type=int, default=16, help=f"pools of {POOL} plain draws")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at once")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    # The server imports the values from this file's folder.
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    begun = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="cdserve-bench-") as folder,
        Server(settings(Path(folder))) as server,
    ):
        results = asyncio.run(measure(server.base_url, args))
    if args.output:
        setting = {
            **{"tokens": grammar.TOKENS, "accuracy_of_noisy_value": grammar.ACCURACY},
            **{"machine": machine(), "seconds": round(time.monotonic() - begun)},
        }
        args.output.write_text(json.dumps({**setting, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
