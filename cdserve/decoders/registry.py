"""Decoders by name. A request names one; it never carries code or an import path.

Third-party decoders come from the entry-point group ``cdserve.decoders``; only those the operator
lists in the settings are loaded.
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol

from cdserve.decoders.candidate import Decision, Proposal
from cdserve.errors import ConfigError
from cdserve.policy import Policy

ENTRY_POINTS = "cdserve.decoders"


class Run(Protocol):
    """Decodes one response, a decision at a time."""

    def __call__(
        self, policy: Any, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        """Starts.

        Args:
            policy: a validated instance of the decoder's policy.
            proposal: where candidates come from.
            seed: seeds whatever the method draws itself; None for fresh randomness.
        """
        ...


class Decoder(Protocol):
    """A decoding method: the policy a client may send, and what is done with it."""

    policy: ClassVar[type[Policy]]
    run: ClassVar[Run | None]
    """Decodes one response; None where the engine's own sampling does, under the policy's tilt."""


BUILT_IN: dict[str, type[Decoder]] = {}


def decoder(name: str) -> Callable[[type], type]:
    """Registers a built-in decoder under the name that clients write in ``method``."""

    def register(cls: type) -> type:
        BUILT_IN[name] = cls
        return cls

    return register


def load(allowed: Iterable[str]) -> Mapping[str, type[Decoder]]:
    """The built-in decoders and the allowed third-party ones.

    Raises:
        ConfigError: an allowed name is not installed, or is taken by another decoder.
    """
    found = dict(BUILT_IN)
    installed = entry_points(group=ENTRY_POINTS)
    for name in allowed:
        points = installed.select(name=name)
        if not points:
            raise ConfigError(
                f"decoders: {name!r} is not installed; entry points of {ENTRY_POINTS}: "
                f"{sorted(installed.names) or 'none'}"
            )
        if len(points) > 1:
            raise ConfigError(
                f"decoders: {name!r} is installed more than once: "
                f"{', '.join(point.value for point in points)}"
            )
        if name in {*BUILT_IN, "none"}:
            raise ConfigError(f"decoders: the name {name!r} is taken by a built-in decoder")
        try:
            found[name] = points[name].load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"decoders: {name!r} cannot be imported: {error}") from error
    return found
