"""Reward against KL on the demo: a sweep of every method, as figures and a plot.

Ground-truth reward of held-out prompts, and the KL that the server reports, both means over
prompts. The reported KL of best-of-n and blockwise CD is the epsilon_n estimate, that of steered
decoding the exact sum along the path.

    python benchmarks/frontier.py --prompts 256 --output benchmarks/results/frontier.json \
        --plot docs/frontier.svg
"""

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from models import machine
from quality import MAX_TOKENS, Answer, Evaluation, mean_ci
from server import Server

from cdserve.demo.tiny import DEMO_DIR, HEAD_DIR, MODEL_DIR, PROMPTS_PATH, Q_HEAD_DIR, TUNED_DIR

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

BETAS = (1.0, 0.5, 0.3, 0.2, 0.15, 0.1)
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)

SWEEPS: dict[str, dict[str, dict[str, Any]]] = {
    "best-of-n": {f"n={n}": {"method": "best_of_n", "n": n} for n in (2, 4, 8, 16)},
    "blockwise CD, M=32": {
        f"K={k}": {"method": "blockwise_cd", "k": k, "m": 32} for k in (2, 4, 8, 16)
    },
    "token-wise CD": {f"β={b:g}": {"method": "tokenwise_cd", "beta": b} for b in BETAS},
    "token-wise CD, Q by CD-Q": {
        f"β={b:g}": {"method": "tokenwise_cd", "beta": b, "rewards": {"sentiment_cdq": 1}}
        for b in BETAS
    },
    "token-wise CD, top 20": {
        f"β={b:g}": {"method": "tokenwise_cd", "beta": b, "top_k": 20} for b in BETAS
    },
    "mixing towards tuned": {
        f"w={w:g}": {"method": "logit_mixing", "weights": {"base": 1 - w, "tuned": w}}
        for w in SHARES
    },
    "blockwise CD, M=32, of token-wise β=0.5": {
        f"K={k}": {
            "method": "blockwise_cd",
            "k": k,
            "m": 32,
            "proposal": {"method": "tokenwise_cd", "beta": 0.5},
        }
        for k in (2, 4, 8)
    },
}


def point(answers: Sequence[Answer]) -> dict[str, Any]:
    """Means over prompts; reward and KL with half their 95 % intervals."""
    return {
        "reward": mean_ci([a.gold for a in answers]),
        "kl": mean_ci([a.kl_estimate for a in answers]),
        "kl_bound": statistics.mean(a.kl_bound for a in answers),
        "candidate_tokens_per_token": sum(a.candidate_tokens for a in answers)
        / sum(a.tokens for a in answers),
    }


async def sweep(
    base_url: str,
    prompts: Sequence[str],
    concurrency: int,
    sweeps: Mapping[str, Mapping[str, dict[str, Any]]],
) -> dict[str, Any]:
    """Every policy's point, by method and setting, and the base's."""
    evaluation = Evaluation(base_url, concurrency)
    table: dict[str, Any] = {"base": {"": point(await evaluation.run(prompts, None, "base"))}}
    for method, policies in sweeps.items():
        table[method] = {}
        for name, policy in policies.items():
            made = point(await evaluation.run(prompts, policy, f"{method}/{name}"))
            table[method][name] = made
            (reward, ci), (kl, _) = made["reward"], made["kl"]
            print(f"{method:40s} {name:8s} {reward:+.3f} ± {ci:.3f} at {kl:.2f} nats", flush=True)
    return table


def curve(axes: Axes, points: dict[str, Any], label: str) -> None:
    """Reward against KL of one sweep, with the settings' names."""
    kl = [made["kl"][0] for made in points.values()]
    reward, ci = zip(*(made["reward"] for made in points.values()), strict=True)
    axes.errorbar(kl, reward, yerr=ci, marker="o", markersize=4, capsize=2, label=label)
    for x, y, name in zip(kl, reward, points, strict=True):
        axes.annotate(name, (x, y), (3, 4), textcoords="offset points", fontsize=6)


def draw(table: dict[str, Any], path: Path) -> None:
    """Reward against KL, a line a method, the base as a level line."""
    plt.rcParams.update({"svg.hashsalt": "cdserve", "svg.fonttype": "none", "font.size": 9})
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    axes.axhline(table["base"][""]["reward"][0], color="0.6", linestyle=":", label="base")
    for method, points in table.items():
        if method != "base":
            curve(axes, points, method)
    axes.set_xscale("log")
    axes.set_xlabel("KL from the base, nats a response")
    axes.set_ylabel("ground-truth reward")
    axes.legend(loc="lower right", fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def held_out(count: int) -> list[str]:
    """The demo's first prompts that training never saw."""
    lines = PROMPTS_PATH.read_text(encoding="utf-8").splitlines()[:count]
    return [json.loads(line)["prompt"] for line in lines]


def written(**changes: Any) -> Path:
    """The demo's settings with these in the place of its own, and without presets and members."""
    made = yaml.safe_load((DEMO_DIR / "cdserve.yaml").read_text())
    made |= {"model": str(MODEL_DIR), "members": {}, "presets": {}}
    path = Path(tempfile.mkdtemp(prefix="cdserve-bench-")) / "cdserve.yaml"
    path.write_text(yaml.safe_dump(made | changes))
    return path


def settings() -> Path:
    """The demo's, with a second reward whose Q-head is the one fitted by CD-Q."""
    q_heads = {"sentiment": Q_HEAD_DIR, "sentiment_cdq": Q_HEAD_DIR.parent / "sentiment-cdq"}
    rewards = {
        name: {"kind": "value_head", "path": str(HEAD_DIR), "q_head": str(q_head)}
        for name, q_head in q_heads.items()
    }
    return written(rewards=rewards, members={"tuned": str(TUNED_DIR)})


def arguments(doc: str | None, plots: bool = True) -> argparse.Namespace:
    """The command line of a benchmark that sweeps policies."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--output", type=Path)
    if plots:
        parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def write(args: argparse.Namespace, prompts: Sequence[str], **found: Any) -> None:
    """Writes the results and their setting to ``--output``, if given."""
    if args.output:
        made = {"prompts": len(prompts), "max_tokens": MAX_TOKENS, "machine": machine()}
        args.output.write_text(json.dumps({**made, **found}, indent=2) + "\n")


def main() -> None:
    args = arguments(__doc__)
    prompts = held_out(args.prompts)
    with Server(settings()) as server:
        table = asyncio.run(sweep(server.base_url, prompts, args.concurrency, SWEEPS))
    if args.plot:
        draw(table, args.plot)
    write(args, prompts, points=table)


if __name__ == "__main__":
    main()
