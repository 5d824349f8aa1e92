"""Decoders by name. A request names one; it never carries code or an import path.

Third-party decoders come from the entry-point group ``cdserve.decoders``; only those the operator
lists in the settings are loaded.
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Protocol, get_args

from cdserve.decoders.candidate import Decision, Proposal
from cdserve.errors import ConfigError
from cdserve.policy import Policy

ENTRY_POINTS = "cdserve.decoders"


class Run(Protocol):
    """Decodes one response, one decision at a time."""

    def __call__(
        self, policy: Any, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        """Starts the decoding of a response.

        Args:
            policy: a validated instance of the decoder's policy.
            proposal: source of candidates.
            seed: seeds the random numbers of the method itself; None for fresh randomness.
        """
        ...


class Decoder(Protocol):
    """A decoding method: the policy that a client may send, and the function that follows it."""

    policy: ClassVar[type[Policy]]
    run: ClassVar[Run | None]
    """Decodes one response; None if the engine's own sampling does, under the policy's steering."""


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
        ConfigError: an allowed name is not installed, is taken by another decoder, or is not the
            name of a decoder. The message names the package.
    """
    decoders = dict(BUILT_IN)
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
                f"decoders: {name!r} is installed more than once: {', '.join(map(_origin, points))}"
            )
        if name in {*BUILT_IN, "none"}:
            raise ConfigError(
                f"decoders: {name!r}, {_origin(points[name])}, has the name of a built-in decoder"
            )
        decoders[name] = _imported(points[name])
    return decoders


def _imported(point: EntryPoint) -> type[Decoder]:
    where = f"decoders: {point.name!r}, {_origin(point)},"
    try:
        loaded: Any = point.load()
    except Exception as error:  # a package may raise anything
        raise ConfigError(f"{where} cannot be imported: {error!r}") from error
    policy = getattr(loaded, "policy", None)
    if not (isinstance(policy, type) and issubclass(policy, Policy)):
        raise ConfigError(f"{where} has no `policy` that is a subclass of cdserve.policy.Policy")
    if get_args(policy.model_fields["method"].annotation) != (point.name,):
        raise ConfigError(f"{where} has a policy whose `method` is not Literal[{point.name!r}]")
    if policy.width is Policy.width:
        raise ConfigError(
            f"{where} has a policy without `width`, the most candidates drawn per token of the "
            "response, over all draws"
        )
    run = getattr(loaded, "run", ...)
    if run is not None and not callable(run):
        raise ConfigError(f"{where} has no `run`, a function or None")
    imported: type[Decoder] = loaded
    return imported


def _origin(point: EntryPoint) -> str:
    """Target of an entry point, and its package."""
    package = point.dist.name if point.dist else "an unknown package"
    return f"{point.value} of {package}"
