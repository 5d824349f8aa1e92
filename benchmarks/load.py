"""A server under load: rates, latencies and CPU time of each method.

Tables: `closed`, closed loops at several concurrencies; `poisson`, arrival rates at shares of the
highest closed-loop rate; `lengths`, several prompt and answer lengths; `tools`, the same load from
vLLM's load generator and from guidellm. The last three use the first model only. All tables:

    python benchmarks/load.py --output benchmarks/results/load.json --page docs/load.md

A larger run, or a part:

    python benchmarks/load.py --tables closed --models 100m --methods plain blockwise_cd \
        --concurrency 16 128 --prompt-tokens 512 --output-tokens 256 --requests-per-slot 8
"""

import argparse
import itertools
import json
import shlex
import sys
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from load_report import markdown, page
from load_tools import GUIDELLM, TOOLS, Load, Slo
from load_usage import Usage
from models import machine, model
from server import Server

TILT = {"method": "tokenwise_cd", "beta": 0.2}
BLOCKWISE = {"method": "blockwise_cd", "k": 4, "m": 16}
METHODS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "best_of_n": {"method": "best_of_n", "n": 4},
    "blockwise_cd": BLOCKWISE,
    "tokenwise_cd": TILT,
    "logit_mixing": {"method": "logit_mixing", "weights": {"base": 0.4, "tuned": 0.3, "ref": 0.3}},
    "blockwise_cd over tokenwise_cd": {**BLOCKWISE, "proposal": TILT},
}
SIZES = {"demo": (64, 4), "100m": (32, 2)}
"""Tokens an answer, and requests for each one at once, unless the command line has others."""


class Bench:
    """One model's server, and the rows measured on it."""

    def __init__(self, name: str, server: Server, args: argparse.Namespace) -> None:
        tokens, per_slot = SIZES[name]
        self._name, self._server, self._args = name, server, args
        self._tokenizer = model(name).base
        self._tokens = args.output_tokens or tokens
        self._per_slot = args.requests_per_slot or per_slot
        self._slo = Slo(*args.slo)
        self._seeds = itertools.count(1)

    def warm_up(self) -> None:
        """A few requests of each method, which no row has."""
        for method in self._args.methods:
            self._measure("warm-up", method, concurrency=4, requests=4)

    def closed(self) -> Iterator[dict[str, Any]]:
        """Each method at each concurrency."""
        for method, at_once in itertools.product(self._args.methods, self._args.concurrency):
            yield self._measure("closed", method, concurrency=at_once)

    def poisson(self, closed: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Each method at shares of the most requests a second that its closed loops reached."""
        for method, share in itertools.product(self._args.methods, self._args.shares):
            most = max(row["requests_per_s"] for row in closed if row["method"] == method)
            requests = self._per_slot * 16
            made = self._measure("poisson", method, rate=most * share, requests=requests)
            yield {**made, "share": share}

    def lengths(self) -> Iterator[dict[str, Any]]:
        """Plain decoding and blockwise CD, with prompts and answers of several lengths."""
        methods = [name for name in ("plain", "blockwise_cd") if name in self._args.methods]
        for method, (prompt, output) in itertools.product(methods, self._args.lengths):
            sizes = {"prompt_tokens": prompt, "output_tokens": output}
            yield self._measure("lengths", method, concurrency=self._args.at_once, **sizes)

    def tools(self) -> Iterator[dict[str, Any]]:
        """Each method under the same load by each tool."""
        for method, tool in itertools.product(self._args.methods, TOOLS):
            yield self._measure("tools", method, tool, concurrency=self._args.at_once)

    def _measure(
        self, table: str, method: str, tool: str = "vllm bench serve", **fields: Any
    ) -> dict[str, Any]:
        """A row: figures of the load generator, and the server's usage during the run."""
        policy = METHODS[method]
        body: dict[str, Any] = {"temperature": 1.0}
        if policy is not None:
            body["alignment"] = policy
        asked = {
            "requests": self._per_slot * max(2, fields.get("concurrency", 0)),
            "prompt_tokens": self._args.prompt_tokens,
            "output_tokens": self._tokens,
            **fields,
        }
        load = Load(model="bench", body=body, seed=next(self._seeds), **asked)
        url, pid = self._server.base_url, self._server.process.pid
        before = Usage.of(url, pid)
        figures = TOOLS[tool](load, url, self._tokenizer, self._slo)
        used = Usage.of(url, pid).since(before)
        tokens = used.generated_tokens if policy is None else used.candidate_tokens
        seconds = figures["seconds"]
        return {
            **{"table": table, "model": self._name, "method": method, "tool": tool},
            **asked,
            **figures,
            "candidate_tokens_per_s": tokens / seconds,
            "engine_cores": used.engine_s / seconds,
            "front_end_cores": used.front_end_s / seconds,
        }


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields all rows, model by model."""
    for name in args.models:
        with Server(model(name).config()) as server:
            bench = Bench(name, server, args)
            bench.warm_up()
            closed = []
            for row in bench.closed() if "closed" in args.tables else ():
                closed.append(row)
                yield row
            if name != args.models[0]:
                continue
            if "poisson" in args.tables:
                yield from bench.poisson(closed)
            if "lengths" in args.tables:
                yield from bench.lengths()
            if "tools" in args.tables:
                yield from bench.tools()


def sizes(text: str) -> tuple[int, int]:
    """Parses ``PROMPT:OUTPUT``, in tokens."""
    prompt, output = text.split(":")
    return int(prompt), int(output)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables = ["closed", "poisson", "lengths", "tools"]
    parser.add_argument("--tables", nargs="+", choices=tables, default=tables)
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=[0.5, 0.8],
        help="poisson: arrival rates as shares of the highest closed-loop rate",
    )
    parser.add_argument(
        "--lengths",
        type=sizes,
        nargs="+",
        default=[(32, 32), (32, 128), (256, 32), (256, 128)],
        metavar="PROMPT:OUTPUT",
        help="lengths: prompt and answer lengths in tokens",
    )
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument(
        "--output-tokens", type=int, help="tokens per answer (default: 64; 100m: 32)"
    )
    parser.add_argument(
        "--requests-per-slot", type=int, help="requests per concurrent slot (default: 4; 100m: 2)"
    )
    parser.add_argument(
        "--at-once", type=int, default=8, help="lengths and tools: concurrent requests"
    )
    parser.add_argument(
        "--slo",
        type=float,
        nargs=2,
        default=[2000.0, 5000.0],
        metavar=("FIRST_BLOCK", "END_TO_END"),
        help="limits in milliseconds for a request to count as goodput",
    )
    parser.add_argument("--output", type=Path, help="JSON file for all rows")
    parser.add_argument(
        "--page", type=Path, help="Markdown file; its plot goes into the same folder"
    )
    parser.add_argument(
        "--render", type=Path, help="write --page from this JSON file without measuring"
    )
    args = parser.parse_args()
    if "poisson" in args.tables and "closed" not in args.tables:
        parser.error("--tables poisson requires closed, whose rates it uses")
    if args.page and not (args.output or args.render):
        parser.error("--page requires --output or --render, which it links to")
    return args


def main() -> None:
    args = arguments()
    if args.render:
        made = json.loads(args.render.read_text())
    else:
        if "tools" in args.tables:
            GUIDELLM.make()  # before any server is measured
        made = {
            "command": shlex.join(["python", "benchmarks/load.py", *sys.argv[1:]]),
            "date": str(date.today()),
            "machine": machine(),
            "cdserve": version("cdserve"),
            **({"guidellm": "not run"} | (GUIDELLM.versions() if "tools" in args.tables else {})),
            "prompt_tokens": args.prompt_tokens,
            "slo": {"first_block_ms": args.slo[0], "end_to_end_ms": args.slo[1]},
            "methods": {name: METHODS[name] for name in args.methods},
            "rows": [],
        }
        for row in measure(args):
            made["rows"].append(row)
            print(json.dumps(row), flush=True)
            if args.output:
                args.output.write_text(json.dumps(made, indent=2) + "\n")
    print(markdown(made["rows"]))
    if args.page:
        page(made, args.render or args.output, args.page)


if __name__ == "__main__":
    main()
