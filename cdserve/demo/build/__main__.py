"""Trains the demo's heads again: ``python -m cdserve.demo.build``.

The heads learn P(positive) by Monte Carlo, in two stages. In the beginnings of human reviews the
target at every token is the review's label. In responses of the model it is the probability that a
classifier, fitted to reviews of the same set, gives to the whole response. Examples, responses and
hidden states are kept in the user's cache.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from cdserve.cli import main as cdserve
from cdserve.demo import DEMO_DIR
from cdserve.demo.build.examples import write_examples, write_prompts
from cdserve.demo.build.reviews import read_reviews
from cdserve.demo.build.teacher import fit_teacher
from cdserve.demo.model import model_dir
from cdserve.demo.wheel import cache_dir

HEADS = {
    "sentiment": ("--head", "mlp", "--mlp-width", "256", "--bounds", "0", "1"),
    "sentiment-q": ("--head", "lowrank", "--rank", "32"),
}
RATES = {"sentiment": "1e-4", "sentiment-q": "2e-4"}
"""Learning rate of the second stage, by head."""
_LATER = 6400
"""First review whose opening is a prompt; those before it may be examples."""


def main() -> None:
    """Reads the command line and trains the heads."""
    parser = argparse.ArgumentParser(prog="python -m cdserve.demo.build", description=__doc__)
    parser.add_argument("--reviews", type=int, default=2400, help="reviews to learn from")
    parser.add_argument("--prompts", type=int, default=512, help="prompts of the responses")
    parser.add_argument("--out", type=Path, default=DEMO_DIR / "heads", help="folder of the heads")
    args = parser.parse_args()
    cache = cache_dir()
    reviews = read_reviews().heads
    examples = cache / f"reviews-{args.reviews}.jsonl"
    write_examples(reviews[: args.reviews], examples)
    first = cache / f"heads-{args.reviews}"
    states = cache / f"states-{args.reviews}"
    _train(first, ("--data", str(examples), "--cache", str(states)))

    prompts = cache / f"prompts-{args.prompts}.jsonl"
    write_prompts(reviews[_LATER : _LATER + args.prompts // 2], prompts)
    fit_teacher()
    responses = cache / f"responses-{args.prompts}"
    data = ("--prompts", str(prompts), "--cache", str(responses))
    sampling = ("--per-prompt", "4", "--max-tokens", "96", "--temperature", "0.8")
    reward = ("--rewards", "sentiment=cdserve.demo.build.teacher:positive")
    engine = ("--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(1 << 30))
    _train(args.out, (*data, *sampling, *reward, *engine), start=first)


def _train(out: Path, data: Sequence[str], start: Path | None = None) -> None:
    """Trains both heads, from those in another folder if there is one."""
    common = (
        *("--model", str(model_dir()), "--base-name", "SmolLM2-135M-Instruct, 4 bits"),
        *("--score-cut", "--method", "fudge", "--end-weight", "30", *data),
    )
    for name, architecture in HEADS.items():
        if start is None and (out / name / "model.safetensors").exists():
            continue  # of an earlier run
        further = start and ("--start", str(start / name), "--lr", RATES[name])
        folder = str(out / name)
        cdserve(["heads", "train", *common, *architecture, *(further or ()), "--out", folder])
        _halve(out / name / "model.safetensors")


def _halve(path: Path) -> None:
    """Stores weights in float16; they are read as float32."""
    weights = {name: value.half() for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)


if __name__ == "__main__":
    main()
