"""Length experiment of Controlled Decoding (arXiv 2310.17022, section 5) on a demo.

The reward is log(words / 1024). Blockwise CD by value heads is compared with best-of-n by the true
reward, whose curve for every n comes from one pool of draws per prompt. The heads are FUDGE on the
state alone, and FUDGE and CD-Q with the position, trained by ``cdserve heads train``. Each policy
has the n of best-of-n that earns the same reward, with a 95 % bootstrap interval over prompts, and
a ceiling: the n whose KL bound is the policy's. In some policies V* estimated by nested rollouts
takes the head's place, which separates the loss due to the head from the loss due to the search.

    python benchmarks/length.py --demo tiny --cache length-cache \
        --output benchmarks/results/length.json --plot docs/length.svg

Trained heads and responses stay in the cache folder; a second run takes them from there.
"""

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from demos import Demo, demo
from length_reward import log_words
from models import machine
from numpy.typing import NDArray
from openai import AsyncOpenAI
from server import Server
from transformers import AutoTokenizer

from cdserve.demo import NAMES
from cdserve.evaluation.curves import best_of_n_mean
from cdserve.kl import best_of_n_bound

matplotlib.use("svg")
from matplotlib import pyplot as plt

Floats = NDArray[np.float64]

MAX_TOKENS = 256
"""Response limit in training and in decoding; few of the base's responses reach it."""
SIZES = (2, 4, 6, 8, 16)
"""K, candidates per block."""
NESTED = {
    "tiny": ((4, 16), (6, 16), (4, 32), (6, 32), (16, 32)),
    "smollm2": ((4, 32), (6, 32)),
}
"""K and M of the policies by nested rollouts, by demo."""
PER_PROMPT = {"tiny": 3, "smollm2": 4}
"""Responses per training prompt, by demo."""
ENGINE = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"),
    *("--block-size", "32", "--kv-cache-memory-bytes", str(1 << 30)),
)
MLP = ("--head", "mlp", "--method")
Q_HEAD = ("--head", "lowrank", "--position", "--method")
LONG = ("--max-epochs", "60", "--patience", "6")
RECIPES: dict[str, tuple[str, ...]] = {
    "fudge-state": (*MLP, "fudge", *LONG),
    "fudge-position": (*MLP, "fudge", "--position", *LONG),
    "q-fudge": (*Q_HEAD, "fudge", "--max-epochs", "12"),
    "q-cdq": (*Q_HEAD, "cdq", "--start", "q-fudge", "--lr", "2e-4", "--max-epochs", "4"),
    "cdq-position": (*MLP, "cdq", "--teacher", "q-cdq", "--position", "--max-epochs", "12"),
}
"""Arguments of ``heads train`` by folder; ``--start`` and ``--teacher`` name earlier folders."""
SERVED = {
    "tiny": ("fudge-state", "fudge-position", "cdq-position"),
    "smollm2": ("fudge-state", "fudge-position"),
}
"""Heads that decode, by demo. CD-Q needs the values of all next tokens: too slow for 49,152."""
POOL_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PART = 64
"""Draws of one request."""
RESAMPLES = 2000
NESTED_NAME, TRUE_NAME = "nested rollouts", "served best-of-n by the true reward"
COLOURS = dict(
    zip((*SERVED["tiny"], NESTED_NAME, TRUE_NAME), ("C7", "C0", "C1", "C2", "C3"), strict=True)
)


def recipes(name: str) -> dict[str, tuple[str, ...]]:
    """Recipes of the heads that decode a demo, and of their teachers."""
    return RECIPES if name == "tiny" else {head: RECIPES[head] for head in SERVED[name]}


def train(name: str, served: Demo, cache: Path) -> dict[str, Any]:
    """Trains the heads that the cache lacks; returns the reports of all heads by name."""
    cache.mkdir(parents=True, exist_ok=True)
    for file, held_out in (("prompts", False), ("test-prompts", True)):
        lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in served.prompts(held_out)]
        (cache / f"{file}.jsonl").write_text("".join(lines))
    for head, recipe in recipes(name).items():
        if (cache / head / "model.safetensors").is_file():
            continue
        arguments = [str(cache / value) if value in RECIPES else value for value in recipe]
        subprocess.run(
            [
                *(sys.executable, "-m", "cdserve", "heads", "train", "--model", str(served.model)),
                *("--prompts", str(cache / "prompts.jsonl"), "--per-prompt", str(PER_PROMPT[name])),
                *("--test-prompts", str(cache / "test-prompts.jsonl")),
                *("--max-tokens", str(MAX_TOKENS), "--temperature", str(served.temperature)),
                *("--rewards", "words=length_reward:log_words", "--score-cut"),
                *("--cache", str(cache / "responses"), "--out", str(cache / head)),
                *arguments,
                *ENGINE,
            ],
            check=True,
        )
    return {head: json.loads((cache / head / "report.json").read_text()) for head in recipes(name)}


def settings(name: str, served: Demo, cache: Path) -> Path:
    """Settings that serve the heads and the true reward."""
    rewards: dict[str, Any] = {
        head: {"kind": "value_head", "path": str(cache / head)} for head in SERVED[name]
    }
    rewards["words"] = {"kind": "python", "callable": "length_reward:log_words"}
    engine = {
        **{"dtype": "float32", "enforce_eager": True, "max_model_len": 1024},
        **{"block_size": 32, "kv_cache_memory_bytes": 1 << 30},
    }
    return served.settings(rewards=rewards, default_reward="fudge-position", engine=engine)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer with its true reward.

    Attributes:
        reward: true reward.
        tokens: tokens of the answer.
        drawn: tokens of all candidates.
        kl_bound: KL bound that the server reports, in nats.
    """

    reward: float
    tokens: int
    drawn: int
    kl_bound: float


def seed(*parts: object) -> int:
    """Seed of a request."""
    return zlib.crc32("/".join(map(str, parts)).encode())


class Experiment:
    """The requests of the experiment, a bounded number at once.

    Args:
        base_url: address of the server.
        served: the demo on the server.
        prompts: prompts to answer.
        concurrency: requests at once.
    """

    def __init__(
        self, base_url: str, served: Demo, prompts: Sequence[str], concurrency: int
    ) -> None:
        self._temperature = served.temperature
        self._client = AsyncOpenAI(base_url=f"{base_url}/v1", api_key="-", max_retries=0)
        self._prompts = prompts
        self._slots = asyncio.Semaphore(concurrency)
        self._tokenizer = AutoTokenizer.from_pretrained(served.model)

    async def pool(self, size: int) -> tuple[Floats, Floats]:
        """True rewards and tokens of draws from the base, ``[prompts, size]`` each."""

        async def draws(prompt: str) -> tuple[list[float], list[int]]:
            parts = await asyncio.gather(
                *(
                    self._draw(prompt, min(PART, size - i), MAX_TOKENS, seed("pool", i, prompt))
                    for i in range(0, size, PART)
                )
            )
            choices = [choice for part in parts for choice in part]
            rewards = [log_words(prompt, choice.text) for choice in choices]
            return rewards, [len(choice.token_ids) for choice in choices]

        rewards, tokens = zip(*await asyncio.gather(*map(draws, self._prompts)), strict=True)
        return np.array(rewards), np.array(tokens, np.float64)

    async def answers(self, policy: dict[str, Any]) -> list[Answer]:
        """One answer per prompt."""

        async def answer(prompt: str) -> Answer:
            async with self._slots:
                completion = await self._client.completions.create(
                    model="demo",
                    prompt=prompt,
                    max_tokens=MAX_TOKENS,
                    temperature=self._temperature,
                    seed=seed(json.dumps(policy), prompt),
                    extra_body={"alignment": policy},
                )
            report = (completion.model_extra or {})["alignment"]
            assert completion.usage is not None
            return Answer(
                reward=log_words(prompt, completion.choices[0].text),
                tokens=completion.usage.completion_tokens,
                drawn=report["candidate_tokens"],
                kl_bound=report["kl"]["bound"],
            )

        return list(await asyncio.gather(*map(answer, self._prompts)))

    async def nested(self, k: int, m: int, rollouts: int) -> list[Answer]:
        """One answer per prompt by blockwise CD whose value is a mean over rollouts of the base.

        The tokens drawn are those of the candidates; rollouts are not counted.
        """

        async def value(prompt: str, written: list[int], ended: bool, draw: int) -> float:
            left = MAX_TOKENS - len(written)
            if ended or left == 0:
                return log_words(prompt, self._decode(written))
            ids = [*self._encode(prompt), *written]
            continuations = await self._draw(ids, rollouts, left, draw)
            texts = [self._decode([*written, *choice.token_ids]) for choice in continuations]
            return float(np.mean([log_words(prompt, text) for text in texts]))

        async def answer(prompt: str) -> Answer:
            written: list[int] = []
            drawn, decisions, ended = 0, 0, False
            while not ended and len(written) < MAX_TOKENS:
                name = seed("nested", k, m, prompt, decisions)
                ids = [*self._encode(prompt), *written]
                blocks = await self._draw(ids, k, min(m, MAX_TOKENS - len(written)), name)
                values = await asyncio.gather(
                    *(
                        value(
                            prompt,
                            [*written, *block.token_ids],
                            block.finish_reason == "stop",
                            seed(name, i),
                        )
                        for i, block in enumerate(blocks)
                    )
                )
                best = blocks[int(np.argmax(values))]
                drawn += sum(len(block.token_ids) for block in blocks)
                decisions += 1
                written += best.token_ids
                ended = best.finish_reason == "stop"
            reward = log_words(prompt, self._decode(written))
            return Answer(reward, len(written), drawn, decisions * best_of_n_bound(k))

        return list(await asyncio.gather(*map(answer, self._prompts)))

    async def _draw(
        self, prompt: str | list[int], count: int, max_tokens: int, name: int
    ) -> list[Any]:
        """Draws continuations from the base; choices with ``token_ids``."""
        async with self._slots:
            completion = await self._client.completions.create(
                model="demo",
                prompt=prompt,
                n=count,
                max_tokens=max_tokens,
                temperature=self._temperature,
                seed=name,
                extra_body={"return_token_ids": True},
            )
        return list(completion.choices)

    def _encode(self, prompt: str) -> list[int]:
        ids: list[int] = self._tokenizer(prompt)["input_ids"]
        return ids

    def _decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text


def n_at_kl(nats: float) -> float:
    """The real n whose best-of-n has this KL bound."""
    low, high = 0.0, nats + 1.0  # of log n, whose bound is log n - 1 + 1 / n
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if best_of_n_bound(math.exp(middle)) > nats else (middle, high)
    return math.exp(low)


def equal_n(reward: float, curve: Floats) -> float:
    """The real n of best-of-n with this reward: interpolated in log n; infinite beyond the pool.

    Args:
        reward: mean reward of a policy.
        curve: mean reward of best-of-n for n = 1, 2, ....
    """
    if reward > curve[-1]:
        return math.inf
    return float(np.exp(np.interp(reward, curve, np.log(np.arange(1, len(curve) + 1)))))


def figures(answers: Sequence[Answer], curves: Floats, pool_tokens: Floats) -> dict[str, Any]:
    """Means over prompts of a policy, and the best-of-n that it equals.

    Args:
        answers: one answer per prompt.
        curves: expected reward of best-of-n by prompt, for n = 1, 2, ....
        pool_tokens: mean tokens of a draw, by prompt.
    """
    reward = np.array([answer.reward for answer in answers])
    drawn = float(np.mean([answer.drawn for answer in answers]))
    nats = float(np.mean([answer.kl_bound for answer in answers]))
    rng = np.random.default_rng(0)
    samples = rng.integers(len(reward), size=(RESAMPLES, len(reward)))
    equal = [equal_n(float(reward[rows].mean()), curves[rows].mean(0)) for rows in samples]
    n = equal_n(float(reward.mean()), curves.mean(0))
    low, high = np.sort(equal)[[round(0.025 * RESAMPLES), round(0.975 * RESAMPLES) - 1]]
    half = 1.96 * reward.std(ddof=1) / math.sqrt(len(reward))
    return {
        "reward": [float(reward.mean()), float(half)],
        "tokens": float(np.mean([answer.tokens for answer in answers])),
        "tokens_drawn": drawn,
        "kl_bound": nats,
        "equals_best_of": _finite(n),
        "equals_best_of_95": [_finite(low), _finite(high)],
        "ceiling_best_of": n_at_kl(nats),
        "tokens_of_that_best_of_n_per_token_drawn": _finite(n * float(pool_tokens.mean()) / drawn),
    }


def _finite(number: float) -> float | None:
    """The number; None for infinity, which stands for an n beyond the pool."""
    return float(number) if math.isfinite(number) else None


def show(name: str, made: dict[str, Any]) -> None:
    """Prints the figures of a policy."""
    (reward, half), (low, high) = made["reward"], made["equals_best_of_95"]
    n, low, high = (
        "more than the pool" if number is None else f"{number:.1f}"
        for number in (made["equals_best_of"], low, high)
    )
    print(
        f"{name:34s} {reward:+.3f} ± {half:.3f}, {made['tokens_drawn']:6.0f} tokens drawn, bound "
        f"{made['kl_bound']:.2f} nats, equals best-of-{n} ({low} to {high}), ceiling best-of-"
        f"{made['ceiling_best_of']:.3g}",
        flush=True,
    )


async def measure(base_url: str, served: Demo, args: argparse.Namespace) -> dict[str, Any]:
    """The pool's curve, and the figures of every policy by series and K."""
    prompts = served.prompts(True)[: args.prompts]
    experiment = Experiment(base_url, served, prompts, args.concurrency)
    rewards, tokens = await experiment.pool(args.pool)
    every_n = range(1, args.pool + 1)
    curves = np.array([[best_of_n_mean(row, row, n) for n in every_n] for row in rewards])
    sizes = [n for n in POOL_SIZES if n <= args.pool]
    found: dict[str, Any] = {
        "pool": {
            "draws": args.pool,
            "tokens": float(tokens.mean()),
            "longest": int(tokens.max()),
            "best_of_n": {
                str(n): {
                    "reward": float(curves[:, n - 1].mean()),
                    "tokens_drawn": n * float(tokens.mean()),
                    "kl_bound": best_of_n_bound(n),
                }
                for n in sizes
            },
        },
        "series": {},
    }
    for n, point in found["pool"]["best_of_n"].items():
        print(f"best-of-{n}: {point['reward']:+.3f}", flush=True)

    def add(series: str, name: str, answers: Sequence[Answer]) -> None:
        made = figures(answers, curves, tokens.mean(1))
        found["series"].setdefault(series, {})[name] = made
        show(f"{series}, {name}", made)

    policy = {"method": "best_of_n", "n": 16, "rewards": {"words": 1.0}}
    add(TRUE_NAME, "n=16", await experiment.answers(policy))
    for head in SERVED[args.demo]:
        for m in args.blocks:
            for k in SIZES:
                policy = {"method": "blockwise_cd", "k": k, "m": m, "rewards": {head: 1.0}}
                add(f"{head}, M={m}", f"K={k}", await experiment.answers(policy))
    for k, m in NESTED[args.demo]:
        if not args.rollouts or m not in args.blocks:
            continue
        answers = await experiment.nested(k, m, args.rollouts)
        add(f"{NESTED_NAME}, M={m}", f"K={k}", answers)
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    """Reward over tokens drawn and over the KL bound, a line per series."""
    plt.rcParams.update({"svg.hashsalt": "cdserve", "svg.fonttype": "none", "font.size": 9})
    figure, both = plt.subplots(1, 2, figsize=(11, 5), sharey=True, layout="constrained")
    for axes, key, label in zip(
        both,
        ("tokens_drawn", "kl_bound"),
        ("tokens drawn per answer", "KL bound, nats per answer"),
        strict=True,
    ):
        curve = {n: point for n, point in found["pool"]["best_of_n"].items() if point[key] > 0}
        axes.plot(
            [point[key] for point in curve.values()],
            [point["reward"] for point in curve.values()],
            **{"color": "black", "marker": ".", "label": "best-of-n by the true reward"},
        )
        for n, point in curve.items():
            place = (point[key], point["reward"])
            axes.annotate(f"n={n}", place, (3, -9), textcoords="offset points", fontsize=6)
        for series, points in found["series"].items():
            mean, half = zip(*(made["reward"] for made in points.values()), strict=True)
            place = [made[key] for made in points.values()]
            colour = COLOURS[series.partition(",")[0]]
            style = (
                {"linestyle": "--", "marker": "s"} if series.endswith("M=16") else {"marker": "o"}
            )
            axes.errorbar(
                place, mean, half, color=colour, markersize=3, capsize=2, label=series, **style
            )
            for x, y, name in zip(place, mean, points, strict=True):
                axes.annotate(name, (x, y), (3, 3), textcoords="offset points", fontsize=6)
        axes.set_xlabel(label)
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
    both[0].set_ylabel("log(words / 1024)")
    both[1].legend(loc="lower right", fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def accuracy(reports: dict[str, Any]) -> dict[str, Any]:
    """Epochs, error and correlation by position of every head."""
    table = {}
    for name, report in reports.items():
        (held,) = report["held_out"]["rewards"].values()
        table[name] = {
            "epochs": report["fit"]["epochs"],
            "best_epoch": report["fit"]["best_epoch"],
            "half_squared_error": held["half_squared_error"],
            "baseline": held["baseline"],
            "correlation_at_end": held["at_end"],
            "correlation_by_token": {
                f"{bucket['low']:.0f}-{bucket['high'] - 1:.0f}": bucket["correlation"]
                for bucket in held["by_number"]
            },
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", choices=NAMES, required=True)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument(
        "--blocks", type=int, nargs="+", default=[16, 32], help="block lengths in tokens"
    )
    parser.add_argument("--pool", type=int, default=256, help="draws from the base per prompt")
    parser.add_argument(
        "--rollouts", type=int, default=16, help="rollouts per value of V*; 0 to leave V* out"
    )
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder of responses and trained heads"
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    # Training and the server import the reward from this file's folder.
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    cached = any((args.cache / name).exists() for name in ("responses", *RECIPES))
    begun = time.monotonic()
    served = demo(args.demo)
    heads = accuracy(train(args.demo, served, args.cache.resolve()))
    trained = time.monotonic()
    with Server(settings(args.demo, served, args.cache.resolve())) as server:
        found = asyncio.run(measure(server.base_url, served, args))
    if args.plot:
        draw(found, args.plot)
    setting = {
        "demo": args.demo,
        "prompts": args.prompts,
        "max_tokens": MAX_TOKENS,
        "rollouts": args.rollouts,
        "machine": machine(),
        "training_seconds": None if cached else round(trained - begun),
        "decoding_seconds": round(time.monotonic() - trained),
    }
    if args.output:
        args.output.write_text(json.dumps({**setting, "heads": heads, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
