"""The command line: ``cdserve serve``, ``collect``, ``eval`` and ``heads``."""

import argparse
import logging
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
    known, flags = parser.parse_known_args(arguments)
    if flags and not known.takes_flags:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    known.flags = flags
    if "" not in sys.path:  # as `python -m` has it: rewards are often modules beside the settings
        sys.path.insert(0, "")
    try:
        known.run(known)
    except (ConfigError, EngineError) as error:
        sys.exit(f"cdserve: {error}")


def _serve(known: argparse.Namespace) -> None:
    from cdserve.api.keys import Keys
    from cdserve.api.server import AlignmentServer
    from cdserve.config import load
    from cdserve.engine import launch
    from cdserve.engine.heads import attach
    from cdserve.engine.reward_models import plan

    settings = load(known.config, known.set)
    attached, models = attach(settings), plan(settings)
    server = AlignmentServer.build(settings, attached, models.outputs)
    args = launch.parse(settings, attached, known.flags)
    args.cdserve = keys = Keys.build(server)
    launch.authenticate(args, keys.secrets)
    logging.getLogger("vllm").info("cdserve serves %s", server.summary())
    launch.serve(args, settings, attached, models)
