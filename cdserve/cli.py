"""The command line: ``cdserve serve``, ``collect``, ``eval`` and ``heads``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cdserve.commands import collect, evaluate, heads
from cdserve.demo import DEMO_DIR
from cdserve.errors import ConfigError, EngineError

_DESCRIPTION = """Serves a model with aligned decoding, on vLLM.

Without --config it serves the demo. All other flags are vLLM's (`vllm serve --help`)."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; exits with 2 and one line on wrong settings."""
    made = parser()
    known, flags = made.parse_known_args(arguments)
    if flags and not known.takes_flags:
        made.error(f"unrecognized arguments: {' '.join(flags)}")
    known.flags = flags
    if "" not in sys.path:  # as `python -m` has it: rewards are often modules beside the settings
        sys.path.insert(0, "")
    try:
        known.run(known)
    except (ConfigError, EngineError) as error:
        sys.exit(f"cdserve: {error}")


def parser() -> argparse.ArgumentParser:
    """All commands. What they do not know is vLLM's where ``takes_flags`` is set."""
    parser = argparse.ArgumentParser(prog="cdserve")
    parser.set_defaults(takes_flags=False)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser(
        "serve", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    serve.set_defaults(run=_serve, takes_flags=True)
    serve.add_argument(
        "--config", type=Path, default=DEMO_DIR / "cdserve.yaml", help="the settings' YAML file"
    )
    serve.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting over the file's and the environment's, such as limits.max_n=8",
    )
    collect.add(commands)
    evaluate.add(commands)
    heads.add(commands)
    return parser


def _serve(known: argparse.Namespace) -> None:
    from cdserve.launch.application import Application
    from cdserve.launch.serve import serve

    serve(Application.build(known.config, known.set, known.flags))
