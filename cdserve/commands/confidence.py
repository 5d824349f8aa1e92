"""``cdserve heads confidence``: makes a head of the distance to cached responses."""

import argparse
from pathlib import Path

from cdserve.errors import ConfigError

_DESCRIPTION = """Makes a head whose value is minus the distance between the last hidden state of a
response and those of the cached responses.

The cache is one of `cdserve heads train`; no engine starts and no model is loaded. A request with a
reward r and this head with weight c maximises the lower confidence bound r - c * distance."""


def add(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    confidence = kinds.add_parser(
        "confidence",
        help="make a head that measures the distance to cached responses",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    confidence.set_defaults(run=_confidence)
    confidence.add_argument(
        "--cache", type=Path, required=True, help="cache folder of `cdserve heads train`"
    )
    confidence.add_argument("--out", type=Path, required=True, help="folder of the new head")
    confidence.add_argument(
        "--ridge",
        type=float,
        default=1.0,
        help="ridge lambda, in squared units of the hidden states (default: 1)",
    )
    confidence.add_argument(
        "--name", default="confidence", help="name of the head's output (default: confidence)"
    )
    confidence.add_argument("--base-name", help="name of the base model in the model card")


def _confidence(args: argparse.Namespace) -> None:
    from cdserve.training.cache import read_cache
    from value_heads import confidence_head, mean_confidence
    from value_heads.heads import WEIGHTS_NAME

    if (args.out / WEIGHTS_NAME).exists():
        raise ConfigError(f"--out {args.out} already has a head; choose another folder")
    if not args.ridge > 0:
        raise ConfigError(f"--ridge is {args.ridge}; it must be positive")
    cache = read_cache(args.cache, "train", "validation")
    base_model = args.base_name or cache.model
    if base_model is None:
        raise ConfigError(f"--base-name is required: --cache {args.cache} does not name its model")
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
    validated = _validation(mean_confidence(head, validation), int(validation.ended.sum()))
    head.report += f"\nValidation: {validated}.\n"
    head.save_pretrained(args.out)
    print(
        f"{args.out}: {args.name} from {int(train.ended.sum())} finished responses; validation: "
        f"{validated}"
    )


def _validation(mean: float | None, count: int) -> str:
    if mean is None:
        return "no finished responses"
    return f"mean {mean:.4g} (n = {count})"
