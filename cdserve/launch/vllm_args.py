"""vLLM's arguments: from the settings' ``engine`` section and the command line."""

import os
from argparse import Namespace
from collections.abc import Sequence
from typing import NoReturn

from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.utils.argparse_utils import FlexibleArgumentParser

from cdserve.config import Settings
from cdserve.engine.vllm import as_flags, check_version, set_cpu_defaults
from cdserve.errors import ConfigError
from cdserve.launch import worker_args
from cdserve.launch.heads import Heads
from cdserve.launch.members import check_tokenizers
from cdserve.validation import did_you_mean

_UNKNOWN = "unrecognized arguments: "
_DRAIN_SECONDS = 30
"""Time for requests to end after a SIGTERM, unless --shutdown-timeout is given."""


class _Parser(FlexibleArgumentParser):  # type: ignore[misc]
    """Parser whose errors are one line, without vLLM's hundreds of flags."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError; suggests a flag for an unknown one."""
        flag = message.removeprefix(_UNKNOWN).split()[0].partition("=")[0]
        if message.startswith(_UNKNOWN):
            hint = did_you_mean(flag, self._option_string_actions)
            message = f"{flag} is not a flag of cdserve serve or of vLLM{hint}"
        raise ConfigError(message)


def parse(settings: Settings, heads: Heads, flags: Sequence[str]) -> tuple[Namespace, Settings]:
    """Parses the settings' ``engine`` section, then the flags of the command line.

    Returns:
        vLLM's arguments; and the settings, without the built-in rewards if the engine cannot
        compute them.

    Raises:
        ConfigError: a flag is one that cdserve sets itself or does not support.
    """
    check_version()
    check_tokenizers(settings)
    cli_env_setup()
    parser = make_arg_parser(_Parser(prog="cdserve serve", add_help=False))
    parser.set_defaults(shutdown_timeout=_DRAIN_SECONDS)
    engine_flags = [*as_flags(settings.engine), *flags]
    args: Namespace = parser.parse_args([settings.model, *engine_flags])
    args.model = args.model_tag
    validate_parsed_serve_args(args)
    if settings.served_model_name is not None and args.served_model_name is None:
        args.served_model_name = [settings.served_model_name]
    _check_servers(args, settings)
    reward_models = any(reward.kind == "reward_model" for reward in settings.rewards.values())
    set_cpu_defaults(args, other_engines=reward_models)
    settings = worker_args.fitting(args, settings, heads)
    if worker_args.needed(settings, heads):
        worker_args.configure(args, settings, heads)
    return args, settings


def _check_servers(args: Namespace, settings: Settings) -> None:
    count = args.api_server_count
    if count is None or count == 1:
        return
    if count < 1:
        raise ConfigError(f"--api-server-count is {count}; it must be at least 1")
    for name, reward in settings.rewards.items():
        if reward.kind == "reward_model":
            raise ConfigError(
                f"--api-server-count is {count}; the engine of reward model {name!r} belongs to "
                "one API server: use 1 API server, or replicas"
            )


def authenticate(args: Namespace, secrets: Sequence[str]) -> None:
    """Makes vLLM require an API key: one of these or of its own."""
    own = args.api_key or [os.environ.get("VLLM_API_KEY")]
    args.api_key = [*filter(None, own), *secrets] or None
