"""Flags that the commands which ask a server share, and what they come to."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cdserve.demo import DEMO_DIR
from cdserve.errors import ConfigError

if TYPE_CHECKING:
    from cdserve.client.answers import Sampling


def add_server(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the server to ask."""
    group = parser.add_argument_group("server")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--url", help="of a server that runs, such as http://localhost:8000")
    which.add_argument(
        "--config",
        type=Path,
        help="the settings' YAML file of the server to start (default: the demo's)",
    )
    group.add_argument("--model", help="the id that requests name (default: the server's first)")
    group.add_argument("--api-key", default="-", help="the server's, if it wants one")
    group.add_argument("--concurrency", type=int, default=16, help="answers at once")


def add_sampling(group: "argparse._ArgumentGroup") -> None:
    """Adds the flags of how answers are drawn."""
    group.add_argument("--max-tokens", type=int, default=256, help="cut answers there")
    group.add_argument("--temperature", type=float, default=1.0)
    group.add_argument("--top-p", type=float, default=1.0)
    group.add_argument("--seed", type=int, default=0, help="of the answers")


def check(args: argparse.Namespace, *counts: str) -> None:
    """Checks these flags, and others whose values are counts.

    Raises:
        ConfigError: naming the flag, its value and what is accepted.
    """
    if args.url is not None and args.flags:
        raise ConfigError(
            f"{' '.join(args.flags)} is not known; vLLM's flags are for a server that is started, "
            "and --url names one that runs"
        )
    for flag in ("limit", "concurrency", "max_tokens", *counts):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise ConfigError(f"--{flag.replace('_', '-')} is {value}; it must be at least 1")
    if not 0 <= args.temperature < float("inf"):
        raise ConfigError(f"--temperature is {args.temperature}; it must be from 0")
    if not 0 < args.top_p <= 1:
        raise ConfigError(f"--top-p is {args.top_p}; it must be above 0 and at most 1")


def sampling(args: argparse.Namespace) -> "Sampling":
    """How answers are drawn; log p is asked for, which lets the server estimate KL."""
    from cdserve.client.answers import Sampling

    return Sampling(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        logprobs=True,
    )


def config_of(args: argparse.Namespace) -> Path:
    """The settings' YAML file of the server to start."""
    return args.config or DEMO_DIR / "cdserve.yaml"
