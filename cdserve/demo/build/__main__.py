"""Trains the demo's heads again: ``python -m cdserve.demo.build``.

The heads learn P(positive) of the beginnings of human reviews, by Monte Carlo: the target at every
token is the review's label. Examples and hidden states are kept in the user's cache.
"""

import argparse
from pathlib import Path

from safetensors.torch import load_file, save_file

from cdserve.cli import main as cdserve
from cdserve.demo import DEMO_DIR
from cdserve.demo.build.examples import write_examples
from cdserve.demo.build.reviews import read_reviews
from cdserve.demo.model import model_dir
from cdserve.demo.wheel import cache_dir

HEADS = {
    "sentiment": ("--head", "mlp", "--mlp-width", "256", "--bounds", "0", "1"),
    "sentiment-q": ("--head", "lowrank", "--rank", "32"),
}


def main() -> None:
    """Reads the command line and trains the heads."""
    parser = argparse.ArgumentParser(prog="python -m cdserve.demo.build", description=__doc__)
    parser.add_argument("--reviews", type=int, default=2400, help="reviews to learn from")
    parser.add_argument("--out", type=Path, default=DEMO_DIR / "heads", help="folder of the heads")
    args = parser.parse_args()
    examples = cache_dir() / f"reviews-{args.reviews}.jsonl"
    write_examples(read_reviews().heads[: args.reviews], examples)
    common = (
        *("--model", str(model_dir()), "--base-name", "SmolLM2-135M-Instruct, 4 bits"),
        *("--data", str(examples), "--score-cut", "--method", "fudge"),
        *("--end-weight", "30"),
        *("--cache", str(cache_dir() / f"states-{args.reviews}")),
    )
    for name, architecture in HEADS.items():
        cdserve(["heads", "train", *common, *architecture, "--out", str(args.out / name)])
        _halve(args.out / name / "model.safetensors")


def _halve(path: Path) -> None:
    """Stores weights in float16; they are read as float32."""
    weights = {name: value.half() for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)


if __name__ == "__main__":
    main()
