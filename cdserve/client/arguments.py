"""Command-line flags shared by the commands that start a server or send requests to one."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cdserve import demo
from cdserve.client.server import ServerArgs
from cdserve.errors import ConfigError

if TYPE_CHECKING:
    from cdserve.client.answers import Sampling


def add_settings(group: "argparse._MutuallyExclusiveGroup") -> None:
    """Adds the flags that select the settings of a server to start."""
    group.add_argument("--config", type=Path, help="YAML file of the settings")
    group.add_argument(
        "--demo",
        nargs="?",
        const=demo.NAMES[0],
        choices=demo.NAMES,
        help="demo to serve without --config: smollm2, a language model of English (the default), "
        "or tiny, a model of a grammar, which needs no download",
    )


def chosen_settings(args: argparse.Namespace) -> demo.DemoSettings:
    """The settings that the flags select. The first use of the default demo fetches its model.

    Raises:
        ConfigError: the flags contradict each other, or the model cannot be fetched.
    """
    if args.config is not None:
        return demo.DemoSettings(args.config, ())
    return demo.settings(args.demo or demo.NAMES[0])


def add_server(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that select the server."""
    group = parser.add_argument_group("server")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--url", help="URL of a running server, such as http://localhost:8000")
    add_settings(source)
    group.add_argument(
        "--model", help="model id in the requests (default: the server's first model)"
    )
    group.add_argument("--api-key", default="-", help="API key, if the server requires one")
    group.add_argument(
        "--concurrency", type=int, default=16, help="maximum concurrent requests (default: 16)"
    )


def add_sampling(group: "argparse._ArgumentGroup") -> None:
    """Adds the sampling flags."""
    group.add_argument(
        "--max-tokens", type=int, default=256, help="maximum tokens per answer (default: 256)"
    )
    group.add_argument(
        "--temperature", type=float, default=1.0, help="sampling temperature (default: 1)"
    )
    group.add_argument(
        "--top-p", type=float, default=1.0, help="nucleus sampling threshold (default: 1)"
    )
    group.add_argument("--seed", type=int, default=0, help="sampling seed (default: 0)")


def check(args: argparse.Namespace, *counts: str) -> None:
    """Checks these flags, and that the flags named in ``counts`` are at least 1.

    Raises:
        ConfigError: a value is not accepted; names the flag, the value and the accepted range.
    """
    if args.url is not None and args.flags:
        raise ConfigError(
            f"unrecognized arguments: {' '.join(args.flags)}; with --url no server is started, so "
            "vLLM's flags are not accepted"
        )
    for flag in ("limit", "concurrency", "max_tokens", *counts):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise ConfigError(f"--{flag.replace('_', '-')} is {value}; it must be at least 1")
    if not 0 <= args.temperature < float("inf"):
        raise ConfigError(f"--temperature is {args.temperature}; it must be 0 or more")
    if not 0 < args.top_p <= 1:
        raise ConfigError(f"--top-p is {args.top_p}; it must be above 0 and at most 1")


def sampling(args: argparse.Namespace) -> "Sampling":
    """The sampling parameters, with log-probabilities, so that the server can estimate KL."""
    from cdserve.client.answers import Sampling

    return Sampling(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        logprobs=True,
    )


def server(args: argparse.Namespace) -> ServerArgs:
    """The server that the flags select; the demo's if they name none.

    Raises:
        ConfigError: the demo's model cannot be fetched.
    """
    return ServerArgs(
        url=args.url,
        settings=None if args.url else chosen_settings(args),
        flags=tuple(args.flags),
        model=args.model,
        api_key=args.api_key,
        concurrency=args.concurrency,
    )
