"""``cdserve heads confidence``: a head of how near responses end to those in a cache."""

import argparse
from pathlib import Path

from cdserve.errors import ConfigError

_DESCRIPTION = """Makes a head whose value is minus the distance from where cached responses ended.

The cache is one that `cdserve heads train` has filled; no engine starts, and no model is loaded.
With weight c beside a reward r, a request maximises the lower confidence bound r - c distance."""


def add(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    confidence = kinds.add_parser(
        "confidence",
        help="make a head of how near responses end to those in a cache",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    confidence.set_defaults(run=_confidence)
    confidence.add_argument("--cache", type=Path, required=True, help="of `cdserve heads train`")
    confidence.add_argument("--out", type=Path, required=True, help="the head's folder")
    confidence.add_argument(
        "--ridge", type=float, default=1.0, help="lambda, in squared units of the states"
    )
    confidence.add_argument("--name", default="confidence", help="of the head's output")
    confidence.add_argument("--base-name", help="the base model's name in the model card")


def _confidence(args: argparse.Namespace) -> None:
    from cdserve.training.cache import read_cache
    from value_heads import confidence_head, mean_confidence
    from value_heads.heads import WEIGHTS_NAME

    if (args.out / WEIGHTS_NAME).exists():
        raise ConfigError(f"--out {args.out} holds a head already; name another folder")
    if not args.ridge > 0:
        raise ConfigError(f"--ridge is {args.ridge}; it must be positive")
    cache = read_cache(args.cache, "train", "validation")
    base_model = args.base_name or cache.model
    if base_model is None:
        raise ConfigError(f"--base-name is missing, and --cache {args.cache} does not say it")
    train, validation = cache.sets["train"], cache.sets["validation"]
    try:
        head = confidence_head(
            train,
            base_model=base_model,
            base_hash=cache.base_hash,
            ridge=args.ridge,
            name=args.name,
        )
    except ValueError as error:
        raise ConfigError(f"--cache {args.cache}: {error}") from error
    said = _held_out(mean_confidence(head, validation), int(validation.ended.sum()))
    head.report += f"\nHeld out: {said}.\n"
    head.save_pretrained(args.out)
    print(f"{args.out}: {args.name} of {int(train.ended.sum())} responses that ended; {said}")


def _held_out(mean: float | None, count: int) -> str:
    if mean is None:
        return "no response to validation prompts ended"
    return f"mean {mean:.4g} on {count} responses to validation prompts"
