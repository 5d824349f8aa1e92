"""Which targets make the better head: FUDGE, TD(0.95), CD-Q and soft values, at equal rollouts.

Trains a value head and a low-rank Q-head by each method on the same responses of the demo, and
measures ground-truth reward against the reported KL of blockwise CD with the former and of
token-wise CD with the latter, means over held-out prompts.

    python benchmarks/value_learning.py --prompts 256 \
        --output benchmarks/results/value_learning.json --plot docs/value_learning.svg
"""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
from frontier import arguments, curve, held_out, sweep, write, written
from server import Server

from cdserve.demo import DEMO_DIR, MODEL_DIR
from cdserve.demo.build.head import Recipe, train_head
from cdserve.demo.build.stages import FULL, SEED, Build
from value_heads import FitOptions

matplotlib.use("svg")
from matplotlib import pyplot as plt

BETA = 0.3
"""Of the soft heads, in reward units a nat; the rewards' standard deviation is 0.44."""
BETAS = (1.0, 0.5, 0.3, 0.2, 0.15)
NAMES = {"fudge": "FUDGE", "td": "TD(0.95)", "cdq": "CD-Q", "soft": f"soft, β={BETA}"}

_V = FitOptions(max_epochs=20, seed=SEED)
_Q = FitOptions(max_epochs=12, patience=12, seed=SEED)
_AFTER = FitOptions(max_epochs=6, patience=6, lr=2e-4, seed=SEED)
RECIPES = {
    "fudge": Recipe(architecture="mlp", method="fudge", options=_V),
    "fudge-q": Recipe(architecture="lowrank", method="fudge", options=_Q),
    "td": Recipe(architecture="mlp", method="td", options=_V),
    "td-q": Recipe(architecture="lowrank", method="td", options=_Q),
    "cdq-q": Recipe(architecture="lowrank", method="cdq", options=_AFTER, start="fudge-q"),
    "cdq": Recipe(architecture="mlp", method="cdq", options=_V, teacher="cdq-q"),
    "cdq-fresh-q": Recipe(architecture="lowrank", method="cdq", options=_Q),
    "soft": Recipe(architecture="mlp", method="soft", beta=BETA, options=_V),
    "soft-q": Recipe(architecture="lowrank", method="soft", beta=BETA, options=_Q),
}


def heads(folder: Path) -> dict[str, Any]:
    """Trains all heads; the figures of each on responses that none was fitted to."""
    build = Build(out=DEMO_DIR, scale=FULL)
    build.write_training_prompts()
    found = {}
    for name, recipe in RECIPES.items():
        report = train_head(MODEL_DIR, build.cache, folder, name, recipe)
        made = report.rewards["sentiment"]
        found[name] = {
            "half_squared_error": made.half_squared_error,
            "at_end": made.at_end,
            "pairs_at_32": {at.number: at.accuracy for at in made.pairs_by_number}.get(32),
            "bellman_rms": made.bellman_rms,
            "bellman_bias": made.bellman_bias,
        }
        print(name, found[name], flush=True)
    return found


def settings(folder: Path) -> Path:
    """The demo with a reward for each method."""
    rewards = {
        name: {
            "kind": "value_head",
            "path": str(folder / ("cdq" if name == "cdq-fresh" else name)),
            "q_head": str(folder / f"{name}-q"),
        }
        for name in (*NAMES, "cdq-fresh")
    }
    return written(rewards=rewards, default_reward="fudge")


def sweeps() -> dict[str, dict[str, dict[str, Any]]]:
    """Blockwise CD and token-wise CD with each method's heads."""
    return {
        f"blockwise CD, {title}": {
            f"K={k}": {"method": "blockwise_cd", "k": k, "m": 32, "rewards": {name: 1}}
            for k in (2, 4, 8)
        }
        for name, title in NAMES.items()
    } | {
        f"token-wise CD, {title}": {
            f"β={b:g}": {"method": "tokenwise_cd", "beta": b, "rewards": {name: 1}} for b in BETAS
        }
        for name, title in {**NAMES, "cdq-fresh": "CD-Q from fresh weights"}.items()
    }


def draw(table: dict[str, Any], path: Path) -> None:
    """Reward against KL: blockwise CD on the left, token-wise CD on the right."""
    plt.rcParams.update({"svg.hashsalt": "cdserve", "svg.fonttype": "none", "font.size": 9})
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained", sharey=True)
    for axes, kind in zip(panels, ("blockwise CD", "token-wise CD"), strict=True):
        axes.axhline(table["base"][""]["reward"][0], color="0.6", linestyle=":", label="base")
        for method, points in table.items():
            if method.startswith(kind):
                curve(axes, points, method.partition(", ")[2])
        axes.set_xscale("log")
        axes.set_title(kind)
        axes.set_xlabel("KL from the base, nats a response")
        axes.legend(loc="upper left", fontsize=8)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("ground-truth reward")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    args = arguments(__doc__)
    folder = Path(tempfile.mkdtemp(prefix="cdserve-bench-"))
    found = heads(folder)
    prompts = held_out(args.prompts)
    with Server(settings(folder)) as server:
        table = asyncio.run(sweep(server.base_url, prompts, args.concurrency, sweeps()))
    if args.plot:
        draw(table, args.plot)
    write(args, prompts, heads=found, points=table)


if __name__ == "__main__":
    main()
