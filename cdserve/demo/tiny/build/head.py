"""The ``sentiment`` heads, trained as by ``cdserve heads train``."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from cdserve.config import PythonReward
from cdserve.scoring import build
from cdserve.training.job import Data, HeadSpec, MethodName, TrainingJob
from cdserve.training.rewards import JobRewards
from cdserve.training.run import train
from value_heads import FitOptions, HeadReport
from value_heads.config import Architecture

_MAX_TOKENS = 224
_FLAGS = (
    *("--dtype", "float32", "--max-model-len", "512", "--enforce-eager"),
    *("--kv-cache-memory-bytes", str(512 << 20), "--block-size", "32"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Options of one head; ``start`` names the head whose weights the fit starts from."""

    architecture: Architecture
    method: MethodName
    options: FitOptions
    start: str | None = None


def recipes(epochs: int, q_epochs: int, seed: int) -> dict[str, Recipe]:
    """Return the recipes of the demo's heads, by folder name.

    The served Q-head is the Monte Carlo one. A step of CD-Q propagates values back by one token, so
    CD-Q starts from that head; with a higher learning rate or more epochs it drifts away.
    """
    monte_carlo = FitOptions(max_epochs=q_epochs, patience=q_epochs, seed=seed)
    few = max(1, q_epochs // 2)
    careful = FitOptions(max_epochs=few, patience=few, lr=2e-4, seed=seed)
    return {
        "sentiment": Recipe(
            architecture="mlp",
            method="fudge",
            options=FitOptions(max_epochs=epochs, seed=seed),
        ),
        "sentiment-q": Recipe(architecture="lowrank", method="fudge", options=monte_carlo),
        "sentiment-cdq": Recipe(
            architecture="lowrank", method="cdq", options=careful, start="sentiment-q"
        ),
    }


def train_head(model: Path, cache: Path, heads: Path, name: str, recipe: Recipe) -> HeadReport:
    """Train one head, replacing an existing one.

    Args:
        model: the base model's folder.
        cache: folder with ``prompts.jsonl`` and ``test-prompts.jsonl``, for responses and states.
        heads: parent folder of the heads.
    """
    shutil.rmtree(heads / name, ignore_errors=True)
    gold = PythonReward(kind="python", callable="cdserve.demo.tiny.reward:sentiment_gold")
    report = train(
        TrainingJob(
            data=Data(
                model=str(model),
                prompts=cache / "prompts.jsonl",
                test_prompts=cache / "test-prompts.jsonl",
                max_tokens=_MAX_TOKENS,
                seed=recipe.options.seed,
                cache=cache,
                flags=_FLAGS,
            ),
            rewards=JobRewards(by_name=build({"sentiment": gold})),
            method=recipe.method,
            head=HeadSpec(
                architecture=recipe.architecture,
                start=None if recipe.start is None else heads / recipe.start,
            ),
            out=heads / name,
            base_name="cdserve-demo",
            options=recipe.options,
        )
    )
    assert isinstance(report, HeadReport)  # pairs have another report
    return report
