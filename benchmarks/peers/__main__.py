"""Compares cdserve with other projects on the same prompts and the same vLLM server.

A round runs every row in a rotating order, with one request at a time and, if the row supports it,
with several. All answers are scored afterwards by the same rewards, outside the measured time. The
first run makes the peers' environments under ``benchmarks/.envs``.

    python -m benchmarks.peers --rounds 3 --output benchmarks/results/peers.json \
        --page docs/peers.md
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import transformers

from benchmarks.models import machine
from benchmarks.peers.driver import Driver, Run, Setting
from benchmarks.peers.environments import ITS_HUB, OPTILLM, THINKBOOSTER
from benchmarks.peers.equal_reward import for_page
from benchmarks.peers.optillm import Proxy
from benchmarks.peers.prompts import held_out
from benchmarks.peers.report import markdown, page, summary
from benchmarks.peers.rows import ROWS, Row
from benchmarks.server import Server, totals
from cdserve.demo.tiny import DEMO_DIR

REWARDS = {"sentiment_gold": 1.0, "sentiment": 1.0}
COUNTERS = {
    "decoded": "vllm:generation_tokens_total",
    "prompt": "vllm:prompt_tokens_total",
    "cached": "vllm:prefix_cache_hits_total",
}


@dataclass(frozen=True, slots=True)
class Bench:
    """The server and its drivers."""

    http: httpx2.Client
    drivers: Mapping[str, Driver]

    def measure(self, row: Row, prompts: Sequence[str], concurrency: int) -> dict[str, Any]:
        """Runs a row once; returns its times, tokens and rewards."""
        before = self._counters()
        run = self.drivers[row.driver].run(row.name, prompts, concurrency)
        after = self._counters()
        served = {name: after[name] - before[name] for name in before}
        scores = [self._rewards(p, a.text) for p, a in zip(prompts, run.answers, strict=True)]
        return {
            "elapsed": run.elapsed,
            "latencies": run.latencies,
            "decoded": _sum(run, "decoded") or served["decoded"],
            "read": _sum(run, "read") or served["prompt"] - served["cached"],
            "gold": [rewards["sentiment_gold"] for rewards in scores],
            "value": [rewards["sentiment"] for rewards in scores],
        }

    def _counters(self) -> dict[str, float]:
        counted = totals(self.http.get("/metrics").text)
        return {name: counted[metric, ""] for name, metric in COUNTERS.items()}

    def _rewards(self, prompt: str, response: str) -> dict[str, float]:
        messages = [{"role": "user", "content": prompt}]
        body = {"prompt": messages, "responses": [response], "rewards": REWARDS}
        answer = self.http.post("/v1/alignment/score", json=body)
        answer.raise_for_status()
        rewards: dict[str, float] = answer.json()["scores"][0]["rewards"]
        return rewards


def _sum(run: Run, what: str) -> float:
    return sum({"decoded": a.decoded, "read": a.read}[what] for a in run.answers)


def rounds(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """The runs of every row, by concurrency."""
    sizes = {1: args.prompts, args.concurrency: args.prompts * 2}
    prompts = iter(held_out(sum(sizes.values()) * args.rounds + 1))
    warm = [next(prompts)]
    for row in ROWS:
        bench.measure(row, warm, 1)
    runs: dict[str, Any] = {row.name: {str(c): [] for c in sizes} for row in ROWS}
    for i in range(args.rounds):
        for concurrency, size in sizes.items():
            some = [next(prompts) for _ in range(size)]
            turn = i * len(ROWS) // args.rounds
            for row in (*ROWS[turn:], *ROWS[:turn]):
                if concurrency > 1 and row.one_at_a_time:
                    continue
                run = bench.measure(row, some, concurrency)
                runs[row.name][str(concurrency)].append(run)
                line = (
                    f"round {i + 1}, concurrency {concurrency}, {row.name}: {run['elapsed']:.1f} s"
                )
                print(line, file=sys.stderr, flush=True)
    return {name: {c: r for c, r in by_size.items() if r} for name, by_size in runs.items()}


def described(args: argparse.Namespace) -> dict[str, Any]:
    """The settings, versions and machine of the figures."""
    names = ("k", "m", "beam_width", "beta", "max_tokens", "threads", "rounds", "prompts")
    return {
        "command": shlex.join(["python", "-m", "benchmarks.peers", *sys.argv[1:]]),
        "machine": machine(),
        "versions": {
            "openai": openai.__version__,
            "transformers": transformers.__version__,
            "its_hub": ITS_HUB.versions(),
            "optillm": OPTILLM.versions(),
            "thinkbooster": THINKBOOSTER.versions(),
        },
        "setting": {**{name: vars(args)[name] for name in names}, "top_k": Setting().top_k},
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Starts the server, the proxy and the drivers; measures all rows."""
    for environment in (ITS_HUB, OPTILLM, THINKBOOSTER):
        environment.make()
    results = described(args)
    own_python = Path(sys.executable)
    with ExitStack() as stack:
        server = stack.enter_context(Server(DEMO_DIR / "cdserve.yaml", *args.flags))
        proxy = stack.enter_context(Proxy(server.base_url, args.k))
        setting = Setting(
            server=server.base_url,
            optillm=proxy.base_url,
            k=args.k,
            m=args.m,
            beam_width=args.beam_width,
            beta=args.beta,
            max_tokens=args.max_tokens,
            threads=args.threads,
        )
        bench = Bench(
            stack.enter_context(httpx2.Client(base_url=server.base_url, timeout=600)),
            {
                "over_http": stack.enter_context(Driver(own_python, "over_http", setting)),
                "with_its_hub": stack.enter_context(
                    Driver(ITS_HUB.python, "with_its_hub", setting)
                ),
                "with_thinkbooster": stack.enter_context(
                    Driver(THINKBOOSTER.python, "with_thinkbooster", setting)
                ),
                "with_transformers": stack.enter_context(
                    Driver(own_python, "with_transformers", setting)
                ),
            },
        )
        runs = rounds(bench, args)
        asked, numbers = proxy.ratings()
    results["optillm_ratings"] = {"asked": asked, "numbers": numbers}
    results["rows"] = summary(runs)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--prompts",
        type=int,
        default=8,
        help="prompts per row and round; twice as many with several requests at a time",
    )
    parser.add_argument(
        "--concurrency", type=int, default=8, help="concurrent requests, in addition to 1"
    )
    parser.add_argument("--k", type=int, default=8, help="candidates per decision")
    parser.add_argument("--m", type=int, default=32, help="tokens per block")
    parser.add_argument(
        "--beam-width", type=int, default=4, help="beams of beam search, a divisor of --k"
    )
    parser.add_argument("--beta", type=float, default=0.3, help="beta of token-wise decoding")
    parser.add_argument("--max-tokens", type=int, default=192)
    parser.add_argument(
        "--threads", type=int, default=1, help="PyTorch threads of the Transformers loops"
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--page", type=Path, help="page to write, such as docs/peers.md")
    parser.add_argument("flags", nargs="*", help="flags of the server, such as -- --block-size 64")
    args = parser.parse_args()
    if args.rounds * args.prompts < 2:
        parser.error("--rounds times --prompts must be at least 2")
    if args.k % args.beam_width:
        parser.error(f"--beam-width must divide --k, {args.k}; got {args.beam_width}")
    results = run(args)
    print(markdown(results))
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")
    if args.page:
        args.page.write_text(page(results, for_page()), encoding="utf-8")


if __name__ == "__main__":
    main()
