"""Support for tests of clients and decoders: a small model, a proposal on it, an engine of it.

``TinyModel`` and ``TinyProposal`` need neither torch nor vLLM. ``FakeEngine`` and ``running_app``
load vLLM when they are first used.
"""

from typing import TYPE_CHECKING, Any

from cdserve.testing.model import TinyModel
from cdserve.testing.proposal import TinyProposal, distribution

if TYPE_CHECKING:
    from cdserve.testing.engine import FakeEngine, running_app

__all__ = ["FakeEngine", "TinyModel", "TinyProposal", "distribution", "running_app"]


def __getattr__(name: str) -> Any:
    if name not in ("FakeEngine", "running_app"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cdserve.testing import engine

    return getattr(engine, name)
