"""What the settings make: the app and its engines, for vLLM's server or for another."""

import logging
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI

from cdserve.api.keys import Keys
from cdserve.api.server import AlignmentServer
from cdserve.config import Settings, load
from cdserve.engine.aligned import AlignedEngine
from cdserve.errors import ConfigError, EngineError
from cdserve.launch import serve
from cdserve.launch.api_servers import ApiServer
from cdserve.launch.heads import Heads, attach
from cdserve.launch.reward_models import RewardModels, plan

_MIDDLEWARE = (
    "cdserve.api.bearer.Bearer",
    "cdserve.api.unexpected.Unexpected",
    "cdserve.api.messages.AnthropicErrors",
)
"""Around vLLM's own, its authentication included; the last is outermost."""


class Source(NamedTuple):
    """What an application is built of."""

    config: Path
    changes: Sequence[str]
    flags: Sequence[str]


@dataclass(frozen=True, slots=True)
class Application:
    """The settings, resolved and checked; nothing runs yet.

    Attributes:
        source: what it was built of.
        args: vLLM's, and what the API reads.
        settings: the operator's.
        heads: the value heads to attach.
        models: the reward models to serve beside.
    """

    source: Source
    args: Namespace
    settings: Settings
    heads: Heads
    models: RewardModels

    @classmethod
    def build(
        cls, config: Path, changes: Sequence[str] = (), flags: Sequence[str] = ()
    ) -> "Application":
        """Reads the settings.

        Args:
            config: the settings' YAML file.
            changes: ``key=value`` pairs over it.
            flags: vLLM's.

        Raises:
            ConfigError: something in them is wrong.
        """
        settings = load(config, changes)
        heads, models = attach(settings), plan(settings)
        server = AlignmentServer.build(settings, heads, models.outputs)
        args = serve.parse(settings, heads, flags)
        args.cdserve = keys = Keys.build(server)
        serve.authenticate(args, keys.secrets)
        args.middleware = [*args.middleware, *_MIDDLEWARE]
        logging.getLogger("vllm").info("cdserve serves %s", server.summary())
        return cls(Source(config, changes, flags), args, settings, heads, models)

    def serve(self) -> None:
        """Runs vLLM's server until it is told to stop.

        Raises:
            EngineError: the engine died.
        """
        if (self.args.api_server_count or 1) > 1:
            serve.serve_several(self.args, self.settings, _api_server, self.source)
        else:
            serve.serve(self.args, self.settings, self.heads, self.models)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[AlignedEngine, FastAPI]]:
        """Starts the engines and the app on them, for another server; stops them at the end."""
        async with serve.running(self.args, self.settings, self.heads, self.models) as engine:
            app: FastAPI = await serve.application(engine, self.args)
            async with app.router.lifespan_context(app):
                yield engine, app


def _api_server(server: ApiServer, source: Source) -> None:
    """One of several API servers, in a process of its own."""
    try:
        made = Application.build(*source)
        serve.serve(made.args, made.settings, made.heads, made.models, server)
    except (ConfigError, EngineError) as error:
        sys.exit(f"cdserve: {error}")
