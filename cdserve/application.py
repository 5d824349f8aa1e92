"""What the settings make: the app and its engines, for vLLM's server or for another."""

import logging
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from cdserve.api.keys import Keys
from cdserve.api.server import AlignmentServer
from cdserve.config import Settings, load
from cdserve.engine import launch
from cdserve.engine.aligned import AlignedEngine
from cdserve.engine.heads import Heads, attach
from cdserve.engine.reward_models import RewardModels, plan


@dataclass(frozen=True, slots=True)
class Application:
    """The settings, resolved and checked; nothing runs yet.

    Attributes:
        args: vLLM's, and what the API reads.
        settings: the operator's.
        heads: the value heads to attach.
        models: the reward models to serve beside.
    """

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
        args = launch.parse(settings, heads, flags)
        args.cdserve = keys = Keys.build(server)
        launch.authenticate(args, keys.secrets)
        logging.getLogger("vllm").info("cdserve serves %s", server.summary())
        return cls(args, settings, heads, models)

    def serve(self) -> None:
        """Runs vLLM's server until it is told to stop.

        Raises:
            EngineError: the engine died.
        """
        launch.serve(self.args, self.settings, self.heads, self.models)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[AlignedEngine, FastAPI]]:
        """Starts the engines and the app on them, for another server; stops them at the end."""
        async with launch.running(self.args, self.settings, self.heads, self.models) as engine:
            app: FastAPI = await launch.application(engine, self.args)
            async with app.router.lifespan_context(app):
                yield engine, app
