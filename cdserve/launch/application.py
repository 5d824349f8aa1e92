"""The application: settings, heads and reward models, resolved and checked before anything runs."""

import logging
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cdserve.api.keys import Keys
from cdserve.api.server import AlignmentServer
from cdserve.config import Settings, load
from cdserve.hub import check_models, has_token, models_of
from cdserve.launch import vllm_args, worker_args
from cdserve.launch.heads import Heads, attach
from cdserve.launch.reward_models import RewardModels, plan

_MIDDLEWARE = (
    "cdserve.api.api_key_header.ApiKeyHeaderMiddleware",
    "cdserve.api.unexpected.UnexpectedErrorMiddleware",
    "cdserve.api.messages.AnthropicErrorMiddleware",
)
"""Middleware around vLLM's, which includes its authentication; the last is outermost."""


class Source(NamedTuple):
    """Arguments of ``Application.build``; several API servers each build their own."""

    config: Path | None
    changes: Sequence[str]
    flags: Sequence[str]


@dataclass(frozen=True, slots=True)
class Application:
    """A server's settings, resolved and checked; nothing runs yet.

    Attributes:
        source: arguments that it was built from.
        args: vLLM's arguments, with the API's keys.
        settings: the operator's settings.
        heads: value heads and Q-heads to attach to the engine.
        models: reward models to run next to the engine.
    """

    source: Source
    args: Namespace
    settings: Settings
    heads: Heads
    models: RewardModels

    @classmethod
    def build(
        cls, config: Path | None, changes: Sequence[str] = (), flags: Sequence[str] = ()
    ) -> "Application":
        """Reads and checks the settings.

        Args:
            config: YAML file of the settings; None for no file.
            changes: ``key=value`` pairs that override the file.
            flags: flags of vLLM's command line.

        Raises:
            ConfigError: a setting or flag is invalid.
        """
        settings = load(config, changes)
        check_models(models_of(settings), has_token=has_token(settings, flags))
        heads, models = attach(settings), plan(settings)
        args, settings = vllm_args.parse(settings, heads, flags)
        server = AlignmentServer.build(settings, heads.outputs, heads.q.columns, models.outputs)
        args.cdserve = keys = Keys.build(server)
        vllm_args.authenticate(args, keys.secrets)
        args.middleware = [*args.middleware, *_MIDDLEWARE]
        logging.getLogger("vllm").info("cdserve serves %s", server.summary())
        return cls(Source(config, changes, flags), args, settings, heads, models)

    @property
    def has_worker(self) -> bool:
        """Whether vLLM's worker runs cdserve's model wrapper."""
        return worker_args.needed(self.settings, self.heads)
