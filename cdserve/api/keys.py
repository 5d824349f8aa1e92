"""API keys with bounds of their own: whose request it is, and what this server is to them."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from cdserve.api.server import AlignmentServer
from cdserve.config import Settings
from cdserve.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What the server is to everybody, and to the holders of keys.

    Attributes:
        secrets: the keys.
    """

    everybody: AlignmentServer
    secrets: tuple[str, ...]
    _servers: Mapping[bytes, AlignmentServer]

    @classmethod
    def build(cls, server: AlignmentServer) -> "Keys":
        """Reads the keys out of the environment.

        Raises:
            ConfigError: one is not set or given twice, or a key names what is not there.
        """
        secrets = {name: _secret(name, server.settings) for name in server.settings.keys}
        if len(set(secrets.values())) < len(secrets):
            raise ConfigError("keys: two of them are the same")
        servers = {_digest(secret): _restricted(server, name) for name, secret in secrets.items()}
        return cls(everybody=server, secrets=tuple(secrets.values()), _servers=servers)

    def server(self, authorization: str | None) -> AlignmentServer:
        """What the server is to whoever sends this header."""
        secret = (authorization or "").partition(" ")[2]
        return self._servers.get(_digest(secret), self.everybody)


def _secret(name: str, settings: Settings) -> str:
    variable = settings.keys[name].api_key_env
    secret = os.environ.get(variable)
    if not secret:
        raise ConfigError(f"keys.{name}.api_key_env names {variable}, which is not set")
    return secret


def _restricted(server: AlignmentServer, name: str) -> AlignmentServer:
    key = server.settings.keys[name]
    limits = server.settings.limits_of(name)
    _known(f"keys.{name}.methods", key.methods, server.methods)
    _known(f"keys.{name}.presets", key.presets, server.presets)
    return replace(
        server,
        settings=server.settings.model_copy(update={"limits": limits}),
        presets=_allowed(server.presets, key.presets),
        methods=_allowed(server.methods, key.methods),
        key=name,
        max_candidates=key.max_candidates,
    )


def _known(key: str, names: list[str] | None, known: Mapping[str, object]) -> None:
    for name in names or ():
        if name not in known:
            raise ConfigError(f"{key} names {name!r}; there is {', '.join(known) or 'none'}")


def _allowed(every: Mapping[str, T], names: list[str] | None) -> dict[str, T]:
    return {name: one for name, one in every.items() if names is None or name in names}


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
