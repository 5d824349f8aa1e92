"""API keys with their own permissions and limits."""

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
    """Views of the server by API key.

    Attributes:
        default: view of callers without one of these keys.
        secrets: the API keys.
    """

    default: AlignmentServer
    secrets: tuple[str, ...]
    _views: Mapping[bytes, AlignmentServer]

    @classmethod
    def build(cls, server: AlignmentServer) -> "Keys":
        """Reads the keys from the environment.

        Raises:
            ConfigError: a key is not set, two keys are equal, or a key names an unknown method or
                preset.
        """
        secrets = {name: _secret(name, server.settings) for name in server.settings.keys}
        owners: dict[str, str] = {}
        for name, secret in secrets.items():
            if secret in owners:
                raise ConfigError(
                    f"keys.{name}.api_key_env names {server.settings.keys[name].api_key_env}, "
                    f"which holds the API key of keys.{owners[secret]}; each needs its own"
                )
            owners[secret] = name
        views = {_digest(secret): _restricted(server, name) for name, secret in secrets.items()}
        return cls(default=server, secrets=tuple(secrets.values()), _views=views)

    def view(self, authorization: str | None) -> AlignmentServer:
        """The view for the value of an ``authorization`` header."""
        secret = (authorization or "").partition(" ")[2]
        return self._views.get(_digest(secret), self.default)


def _secret(name: str, settings: Settings) -> str:
    variable = settings.keys[name].api_key_env
    secret = os.environ.get(variable)
    if not secret:
        raise ConfigError(f"keys.{name}.api_key_env names {variable}, which is not set")
    return secret


def _restricted(server: AlignmentServer, name: str) -> AlignmentServer:
    key = server.settings.keys[name]
    limits = server.settings.limits_of(name)
    _check_names(f"keys.{name}.methods", key.methods, server.methods)
    _check_names(f"keys.{name}.presets", key.presets, server.presets)
    return replace(
        server,
        settings=server.settings.model_copy(update={"limits": limits}),
        presets=_only(server.presets, key.presets),
        methods=_only(server.methods, key.methods),
        key=name,
        max_candidates=key.max_candidates,
    )


def _check_names(key: str, names: list[str] | None, known: Mapping[str, object]) -> None:
    for name in names or ():
        if name not in known:
            raise ConfigError(f"{key} names {name!r}; this server has {', '.join(known) or 'none'}")


def _only(mapping: Mapping[str, T], names: list[str] | None) -> dict[str, T]:
    return {name: value for name, value in mapping.items() if names is None or name in names}


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
