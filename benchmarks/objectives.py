"""Two objectives on the demo, sentiment and brevity: weighted sums, worst case, minimum.

Both rewards enter standardised, sentiment by its head's statistics and brevity by those of the
base's own answers, measured first. Best-of-8 and blockwise CD (K = 4, M = 32) by weighted sums over
a sweep of weights, by an ensemble that is the lower of both, and by worst-case selection (RMOD).
Figures are means over held-out prompts of the ground-truth sentiment, of brevity, and of the lower
of both, standardised by the base's answers.

    python benchmarks/objectives.py --prompts 256 --output benchmarks/results/objectives.json \
        --plot docs/objectives.svg
"""

import asyncio
import statistics
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from frontier import arguments, held_out, write, written
from openai import AsyncOpenAI
from quality import MAX_TOKENS, mean_ci
from server import Server

from cdserve.demo.tiny import HEAD_DIR
from cdserve.demo.tiny.reward import sentiment_gold

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

TARGET = 40
WEIGHTS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
STRENGTHS = (0.5, 2.0, 8.0)
METHODS: dict[str, dict[str, Any]] = {
    "best-of-8": {"method": "best_of_n", "n": 8},
    "blockwise CD, K=4, M=32": {"method": "blockwise_cd", "k": 4, "m": 32},
}
BOTH = {"sentiment": 1.0, "brevity": 1.0}
SWEEPS: dict[str, dict[str, dict[str, Any]]] = {
    "weighted sum": {f"{w:g}": {"rewards": {"sentiment": w, "brevity": 1 - w}} for w in WEIGHTS},
    "lower of both": {"min": {"rewards": {"lower": 1.0}}},
    "worst case": {
        f"λ={strength:g}": {
            "rewards": BOTH,
            "selection": {"worst_case": {"lambda": strength}},
        }
        for strength in STRENGTHS
    },
}

Pair = tuple[float, float]
"""Ground-truth sentiment and brevity of an answer."""


def settings(brevity: Mapping[str, float] | None = None) -> Path:
    """The demo with both rewards and the lower of them; ``brevity`` has mean and std."""
    standard = {"mean": 0.0, "std": 1.0} if brevity is None else dict(brevity)
    return written(
        rewards={
            "sentiment": {"kind": "value_head", "path": str(HEAD_DIR), "standardise": True},
            "brevity": {"kind": "length", "target": TARGET, "standardise": standard},
            "lower": {"kind": "ensemble", "of": ["sentiment", "brevity"], "aggregate": "min"},
        }
    )


async def answers(
    base_url: str, prompts: Sequence[str], concurrency: int, policy: dict[str, Any], draw: str
) -> list[Pair]:
    """One answer a prompt."""
    slots = asyncio.Semaphore(concurrency)

    async def one(client: AsyncOpenAI, prompt: str) -> Pair:
        async with slots:
            made = await client.completions.create(
                model="demo",
                prompt=prompt,
                max_tokens=MAX_TOKENS,
                seed=zlib.crc32(f"{draw}/{prompt}".encode()),
                extra_body={"alignment": {**policy, "report": "none"}},
            )
        length = made.usage.completion_tokens
        return sentiment_gold(prompt, made.choices[0].text), -abs(length - TARGET) / TARGET

    # Closed by hand: one left to be collected may close a socket that the next one has by then.
    async with AsyncOpenAI(base_url=f"{base_url}/v1", api_key="-", max_retries=0) as client:
        return await asyncio.gather(*(one(client, prompt) for prompt in prompts))


def point(pairs: Sequence[Pair], base: Sequence[Pair]) -> dict[str, Any]:
    """Means of both and of the lower, with half their 95 % intervals."""
    columns = list(zip(*base, strict=True))
    scale = [(statistics.mean(column), statistics.stdev(column)) for column in columns]
    lower = [
        min((x - mean) / std for x, (mean, std) in zip(pair, scale, strict=True)) for pair in pairs
    ]
    return {
        "sentiment": mean_ci([s for s, _ in pairs]),
        "brevity": mean_ci([b for _, b in pairs]),
        "lower": mean_ci(lower),
    }


async def sweep(
    base_url: str, prompts: Sequence[str], concurrency: int, base: Sequence[Pair]
) -> dict[str, Any]:
    """Every method's points, by combination and setting."""
    table: dict[str, Any] = {}
    for method, policy in METHODS.items():
        table[method] = {}
        for combination, policies in SWEEPS.items():
            table[method][combination] = {}
            for name, fields in policies.items():
                draw = f"{method}/{combination}/{name}"
                pairs = await answers(base_url, prompts, concurrency, {**policy, **fields}, draw)
                made = table[method][combination][name] = point(pairs, base)
                figures = "   ".join(f"{k} {m:+.3f} ± {ci:.3f}" for k, (m, ci) in made.items())
                print(f"{draw:44s} {figures}", flush=True)
    return table


def draw(table: Mapping[str, Any], base: Mapping[str, Any], path: Path) -> None:
    """Sentiment against brevity, a panel a method."""
    plt.rcParams.update({"svg.hashsalt": "cdserve", "svg.fonttype": "none", "font.size": 9})
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained", sharey=True)
    for axes, (method, combinations) in zip(panels, table.items(), strict=True):
        axes.plot(base["brevity"][0], base["sentiment"][0], "k*", label="base")
        for combination, points in combinations.items():
            _line(axes, points, combination)
        axes.set_title(method)
        axes.set_xlabel(f"brevity, −|length − {TARGET}| / {TARGET}")
        axes.legend(loc="center left", fontsize=8)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("ground-truth sentiment")
    figure.savefig(path, metadata={"Date": None})


def _line(axes: Axes, points: Mapping[str, Any], label: str) -> None:
    x, x_ci = zip(*(made["brevity"] for made in points.values()), strict=True)
    y, y_ci = zip(*(made["sentiment"] for made in points.values()), strict=True)
    axes.errorbar(x, y, yerr=y_ci, xerr=x_ci, marker="o", markersize=4, capsize=2, label=label)
    for name, at_x, at_y in zip(points, x, y, strict=True):
        axes.annotate(name, (at_x, at_y), (3, 4), textcoords="offset points", fontsize=6)


def main() -> None:
    args = arguments(__doc__)
    prompts = held_out(args.prompts)
    plain = {"method": "best_of_n", "n": 1}
    with Server(settings()) as server:
        base = asyncio.run(answers(server.base_url, prompts, args.concurrency, plain, "base"))
    lengths = [brevity for _, brevity in base]
    standard = {"mean": statistics.mean(lengths), "std": statistics.stdev(lengths)}
    with Server(settings(standard)) as server:
        table = asyncio.run(sweep(server.base_url, prompts, args.concurrency, base))
    of_base = point(base, base)
    if args.plot:
        draw(table, of_base, args.plot)
    write(args, prompts, standard=standard, base=of_base, points=table)


if __name__ == "__main__":
    main()
