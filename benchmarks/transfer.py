"""Does a head outlive fine-tuning: one trained on a base model, used on a model tuned from it.

The demo's members: `ref` is the base, `tuned` was trained on from it on positive reviews. Value
heads and Q-heads are trained on the responses of each, the same prompts; both are attached to
`tuned`, that of `ref` by force. The share of the gain that remains is (reward with the head of
`ref` - reward without) / (reward with its own head - reward without). Last, `tuned` as a member
beside the demo's model, searched by the value head of the latter, which reads its own states.

    python benchmarks/transfer.py --prompts 256 --output benchmarks/results/transfer.json
"""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from frontier import arguments, held_out, settings, sweep, write, written
from server import Server

from cdserve.demo import REF_DIR, TUNED_DIR
from cdserve.demo.build.head import Recipe, train_head
from cdserve.demo.build.stages import FULL, SEED, Build
from cdserve.demo.reward import sentiment
from cdserve.training.rollouts import read
from value_heads import CachedRollouts, FitOptions, load_head, measure

MEMBERS = {"ref": REF_DIR, "tuned": TUNED_DIR}
RECIPES = {
    "value": Recipe(
        architecture="mlp", method="fudge", options=FitOptions(max_epochs=20, seed=SEED)
    ),
    "q": Recipe(
        architecture="lowrank",
        method="fudge",
        options=FitOptions(max_epochs=12, patience=12, seed=SEED),
    ),
}


def heads(folder: Path) -> dict[str, Any]:
    """Trains a head of each kind on each member; how well each predicts on `tuned`'s responses."""
    for name, model in MEMBERS.items():
        build = Build(out=folder / name, scale=FULL)
        build.write_training_prompts()
        for kind, recipe in RECIPES.items():
            train_head(model, build.cache, folder / name, kind, recipe)
    cache = folder / "tuned" / "cache"
    rewards = torch.tensor([[sentiment(rollout.text)] for rollout in read(cache, "test")])
    test = CachedRollouts(cache, "test", rewards)
    found: dict[str, Any] = {}
    for name in MEMBERS:
        for kind in RECIPES:
            made = measure(load_head(folder / name / kind), test).rewards["sentiment"]
            figures = {"half_squared_error": made.half_squared_error, "at_end": made.at_end}
            found[f"{kind} head of {name}"] = {**figures, "of_a_constant": made.baseline}
    print(json.dumps(found, indent=2), flush=True)
    return found


def serve_tuned(folder: Path) -> Path:
    """`tuned`, with its own heads and with those of `ref`."""
    rewards = {
        name: {
            "kind": "value_head",
            "path": str(folder / name / "value"),
            "q_head": str(folder / name / "q"),
            "force": True,
        }
        for name in MEMBERS
    }
    return written(model=str(TUNED_DIR), rewards=rewards, default_reward="tuned")


def sweeps() -> dict[str, dict[str, dict[str, Any]]]:
    """Blockwise and token-wise CD by each member's heads."""
    return {
        f"head of {name}": {
            **{
                f"blockwise K={k}": {"method": "blockwise_cd", "k": k, "m": 32, "rewards": reward}
                for k in (2, 4, 8)
            },
            **{
                f"token-wise β={b:g}": {"method": "tokenwise_cd", "beta": b, "rewards": reward}
                for b in (0.5, 0.3, 0.2)
            },
        }
        for name in MEMBERS
        for reward in [{name: 1}]
    }


def beside() -> dict[str, dict[str, dict[str, Any]]]:
    """`tuned` as the proposal of a search by the demo's own value head."""
    tuned = {"method": "logit_mixing", "weights": {"base": 0, "tuned": 1}}
    search = {"method": "blockwise_cd", "m": 32, "proposal": tuned}
    return {
        "member tuned": {
            "alone": tuned,
            **{f"blockwise K={k}": {**search, "k": k} for k in (2, 4, 8)},
        }
    }


def shares(table: dict[str, Any]) -> dict[str, float]:
    """What remains of the gain with the head of `ref`, by policy."""
    (base, _) = table["base"][""]["reward"]
    ref, tuned = (table[f"head of {name}"] for name in ("ref", "tuned"))
    return {
        policy: (ref[policy]["reward"][0] - base) / (tuned[policy]["reward"][0] - base)
        for policy in tuned
    }


def main() -> None:
    args = arguments(__doc__, plots=False)
    folder = Path(tempfile.mkdtemp(prefix="cdserve-bench-"))
    found, prompts = heads(folder), held_out(args.prompts)
    with Server(serve_tuned(folder)) as server:
        table = asyncio.run(sweep(server.base_url, prompts, args.concurrency, sweeps()))
    kept = shares(table)
    print("share of the gain that remains:", {name: round(x, 2) for name, x in kept.items()})
    with Server(settings()) as server:
        member = asyncio.run(sweep(server.base_url, prompts, args.concurrency, beside()))
    write(args, prompts, heads=found, shares=kept, points=table, beside_the_base=member)


if __name__ == "__main__":
    main()
