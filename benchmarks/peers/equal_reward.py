"""Requests per second at the reward of best-of-16: cdserve's policies, vLLM's ``n=16``, its_hub.

A round runs every row in a rotating order on the same prompts, with 1, 8 and 32 requests at once.
The peers draw all 16 responses, and the client selects by the server's score route. All rows select
by the same value head; the reward of the answers is the ground truth.

    python -m benchmarks.peers.equal_reward --output benchmarks/results/equal_reward.json \
        --page docs/peers.md

A policy is added as in ``cdserve eval``, by ``--policies FILE`` or ``--policy``:

    python -m benchmarks.peers.equal_reward --rounds 2 --policy '{"method": "best_of_n", "n": 8}'
"""

import argparse
import itertools
import json
import shlex
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.intervals import mean_ci
from benchmarks.models import machine
from benchmarks.peers.driver import Driver, Setting
from benchmarks.peers.environments import ITS_HUB
from benchmarks.peers.plain import PlainServer
from benchmarks.peers.prompts import held_out
from benchmarks.peers.report import RESULTS, page
from benchmarks.server import Server, totals
from cdserve.client.policies import read_policies
from cdserve.demo.tiny import DEMO_DIR
from cdserve.demo.tiny.reward import sentiment_gold

N = 16
POLICIES: dict[str, Any] = {
    "best_of_n": {"method": "best_of_n", "n": N},
    **{
        f"race, δ = {delta:g}": {"method": "best_of_n", "n": N, "race": {"delta": delta}}
        for delta in (0.03, 0.06)
    },
    "race, δ = 0.01, λ = 0.0006, 4 at once": {
        **{"method": "best_of_n", "n": N, "race": {"delta": 0.01}},
        **{"stop": {"gain_per_token": 0.0006}, "at_once": 4},
    },
}
"""Policies of cdserve, by name."""

PEERS = {"vLLM n=K": "over_http", "vLLM n=K, two servers": "over_http", "its_hub": "with_its_hub"}
"""The driver of each peer, by row name."""

SHOWN = {
    "vLLM n=K": f"vLLM `n={N}`, the client selects",
    "vLLM n=K, two servers": f"plain vLLM `n={N}`, the client selects",
    "its_hub": f"its_hub `BestOfN`, budget {N}",
}
REFERENCE = "vLLM n=K"
"""The row whose reward the other rows are compared with."""

Round = Mapping[str, Any]
"""Seconds, tokens and rewards of a row at one concurrency in one round."""

PROMPTS = 124
"""Distinct prompts, which later rounds repeat."""


class Bench:
    """The servers and the drivers of all rows.

    Args:
        drivers: driver of each row, by row name.
        clients: a client of each server whose tokens count.
    """

    def __init__(self, drivers: Mapping[str, Driver], clients: Sequence[httpx2.Client]) -> None:
        self.drivers = drivers
        self._clients = clients

    def measure(self, row: str, prompts: Sequence[str], concurrency: int) -> Round:
        """Runs a row once."""
        before = self._tokens()
        run = self.drivers[row].run(row, prompts, concurrency)
        texts = [answer.text for answer in run.answers]
        return {
            "elapsed": run.elapsed,
            "latencies": run.latencies,
            "tokens": self._tokens() - before,
            "gold": [sentiment_gold(*pair) for pair in zip(prompts, texts, strict=True)],
        }

    def _tokens(self) -> float:
        """Tokens drawn by all servers since their start."""
        counted = [totals(client.get("/metrics").text) for client in self._clients]
        return sum(counts["vllm:generation_tokens_total", ""] for counts in counted)


def measure(bench: Bench, sizes: Mapping[int, int], rounds: int) -> dict[str, dict[str, Any]]:
    """The rounds of every row, by row name and concurrency.

    Args:
        sizes: prompts of a round, by concurrency.
    """
    rows = list(bench.drivers)
    prompts: Iterator[str] = itertools.cycle(held_out(PROMPTS))
    for row in rows:
        bench.measure(row, [next(prompts)], 1)
    runs: dict[str, dict[str, Any]] = {row: {str(size): [] for size in sizes} for row in rows}
    for i in range(rounds):
        for concurrency, size in sizes.items():
            some = list(itertools.islice(prompts, size))
            turn = (i + concurrency) % len(rows)
            for row in (*rows[turn:], *rows[:turn]):
                run = bench.measure(row, some, concurrency)
                runs[row][str(concurrency)].append(run)
                line = f"round {i + 1}, {concurrency} at once, {row}: {run['elapsed']:.1f} s"
                print(line, file=sys.stderr, flush=True)
    return runs


def summary(runs: Mapping[str, Mapping[str, Sequence[Round]]]) -> dict[str, Any]:
    """The figures of every row: reward and tokens over all answers, rates by concurrency."""
    return {row: _figures(row, runs) for row in runs}


def _figures(row: str, runs: Mapping[str, Mapping[str, Sequence[Round]]]) -> dict[str, Any]:
    every = [run for rounds in runs[row].values() for run in rounds]
    reference = [run for rounds in runs[REFERENCE].values() for run in rounds]
    gold = _all(every, "gold")
    differences = [a - b for a, b in zip(gold, _all(reference, "gold"), strict=True)]
    return {
        "answers": len(gold),
        "reward": mean_ci(gold),
        "against_reference": mean_ci(differences),
        "tokens": sum(run["tokens"] for run in every) / len(gold),
        "rates": {concurrency: _rates(row, runs, concurrency) for concurrency in runs[row]},
    }


def _rates(
    row: str, runs: Mapping[str, Mapping[str, Sequence[Round]]], concurrency: str
) -> dict[str, Any]:
    """Requests/s, latencies, and ratios of the requests/s to the peers' in the same round."""
    rounds = runs[row][concurrency]
    latencies = _all(rounds, "latencies")
    percentiles = statistics.quantiles(latencies, n=100, method="inclusive")
    seconds = [run["elapsed"] for run in rounds]
    ratios = {
        peer: quartiles(
            [b["elapsed"] / a for a, b in zip(seconds, runs[peer][concurrency], strict=True)]
        )
        for peer in PEERS
        if row not in PEERS
    }
    return {
        "requests_per_s": quartiles([len(run["latencies"]) / run["elapsed"] for run in rounds]),
        "latency_p50": percentiles[49],
        "latency_p99": percentiles[98],
        "ratios": ratios,
    }


def _all(rounds: Sequence[Round], what: str) -> list[float]:
    return [value for run in rounds for value in run[what]]


def quartiles(values: Sequence[float]) -> list[float]:
    """Median, lower and upper quartile; of a single value, the value."""
    if len(values) == 1:
        return [values[0]] * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [middle, low, high]


def markdown(rows: Mapping[str, Any]) -> str:
    """A table of rewards, and a table of rates per concurrency."""
    return "\n\n".join(
        [
            _table(
                ["", "reward", f"difference from vLLM `n={N}`", "tokens drawn per request"],
                ([_shown(row), *_rewards(figures)] for row, figures in rows.items()),
            ),
            *(_rate_table(rows, concurrency) for concurrency in rows[REFERENCE]["rates"]),
        ]
    )


def _rewards(figures: Mapping[str, Any]) -> list[str]:
    reward, difference = (
        "{:+.3f} ± {:.3f}".format(*figures[name]) for name in ("reward", "against_reference")
    )
    return [reward, difference, f"{figures['tokens']:.0f}"]


def _rate_table(rows: Mapping[str, Any], concurrency: str) -> str:
    plural = "request" if concurrency == "1" else "requests"
    titles = ["", "requests/s", "latency p50, p99, s", *(f"÷ {_shown(peer)}" for peer in PEERS)]
    lines = []
    for row, figures in rows.items():
        rates = figures["rates"][concurrency]
        cells = [_spread(rates["ratios"][peer]) if rates["ratios"] else "" for peer in PEERS]
        latencies = f"{rates['latency_p50']:.2f}, {rates['latency_p99']:.2f}"
        lines.append([_shown(row), _spread(rates["requests_per_s"]), latencies, *cells])
    return f"{concurrency} {plural} at once:\n\n{_table(titles, lines)}"


def _spread(figures: Sequence[float]) -> str:
    return "{:.2f} ({:.2f}-{:.2f})".format(*figures)


def _shown(row: str) -> str:
    return SHOWN.get(row, f"**cdserve** {row}")


def _table(titles: Sequence[str], lines: Iterator[list[str]] | Sequence[list[str]]) -> str:
    rule = ["---"] * len(titles)
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, rule, *lines))


def for_page() -> dict[str, str]:
    """Command, machine and tables of the saved figures, for the page of the peers."""
    path = RESULTS / "equal_reward.json"
    if not path.exists():
        command = (
            "python -m benchmarks.peers.equal_reward "
            "--output benchmarks/results/equal_reward.json --page docs/peers.md"
        )
        return {"command": command, "measured": "Not measured yet.", "table": ""}
    saved = json.loads(path.read_text(encoding="utf-8"))
    measured = f"Measured by that command on {saved['machine']}; {saved['rounds']} rounds."
    return {"command": saved["command"], "measured": measured, "table": markdown(saved["rows"])}


def run(args: argparse.Namespace, policies: Mapping[str, Any]) -> dict[str, Any]:
    """Starts the servers and the drivers; measures all rows."""
    ITS_HUB.make()
    with ExitStack() as stack:
        flags = ("--set", "rewards.sentiment.standardise=true", *args.flags)
        server = stack.enter_context(Server(DEMO_DIR / "cdserve.yaml", *flags))
        plain = stack.enter_context(PlainServer())
        setting = Setting(
            server=server.base_url,
            generator=plain.base_url,
            k=N,
            max_tokens=args.max_tokens,
            policies=policies,
        )
        drivers = {
            "over_http": stack.enter_context(Driver(Path(sys.executable), "over_http", setting)),
            "with_its_hub": stack.enter_context(Driver(ITS_HUB.python, "with_its_hub", setting)),
        }
        rows = PEERS | dict.fromkeys(policies, "over_http")
        urls = (server.base_url, plain.base_url)
        bench = Bench(
            {row: drivers[name] for row, name in rows.items()},
            [stack.enter_context(httpx2.Client(base_url=url, timeout=600)) for url in urls],
        )
        sizes = dict(zip(args.concurrency, args.prompts, strict=True))
        return summary(measure(bench, sizes, args.rounds))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument(
        "--prompts",
        type=int,
        nargs="+",
        default=[4, 16, 64],
        help="prompts per row and round, for each concurrency",
    )
    parser.add_argument("--max-tokens", type=int, default=192)
    parser.add_argument("--policies", type=Path, help="file of further policies of cdserve")
    parser.add_argument("--policy", action="append", default=[], help="a further policy of cdserve")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument(
        "--page", type=Path, help="page of the peers to write again, such as docs/peers.md"
    )
    parser.add_argument("flags", nargs="*", help="flags of cdserve, such as -- --block-size 64")
    args = parser.parse_args()
    if args.rounds * min(args.prompts) < 2:
        parser.error("--rounds times each of --prompts must be at least 2")
    if len(args.prompts) != len(args.concurrency):
        parser.error("--prompts must have one number per --concurrency")
    added = read_policies(args.policies, args.policy)
    policies = POLICIES | {policy.name: policy.alignment for policy in added}
    rows = run(args, policies)
    print(markdown(rows))
    if args.output:
        results = {
            "command": shlex.join(["python", "-m", "benchmarks.peers.equal_reward", *sys.argv[1:]]),
            "machine": machine(),
            "its_hub": ITS_HUB.versions(),
            "rounds": args.rounds,
            "prompts": args.prompts,
            "policies": policies,
            "rows": rows,
        }
        args.output.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    if args.page:
        peers = json.loads((RESULTS / "peers.json").read_text(encoding="utf-8"))
        args.page.write_text(page(peers, for_page()), encoding="utf-8")


if __name__ == "__main__":
    main()
