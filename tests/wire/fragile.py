"""A decoder of somebody else's that fails where it is told to, for the served tests."""

import builtins
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Literal

from cdserve.decoders import Argmax, Decision, Proposal, search
from cdserve.policy import Limits, SearchPolicy
from tests.server.faulty import SECRET

NAME = "fragile"


class FragilePolicy(SearchPolicy):
    """Raises an exception of a class at a place."""

    method: Literal["fragile"]
    at: Literal["limits", "start", "selection"]
    error: Literal["KeyError", "ValueError", "NotImplementedError"] = "KeyError"

    @property
    def width(self) -> int:
        """Two candidates."""
        return 2

    def check_limits(self, limits: Limits) -> None:
        """Fails if it is to fail here."""
        self.fail("limits")

    def fail(self, here: str) -> None:
        """Raises if this is the place."""
        if here == self.at:
            raise vars(builtins)[self.error](SECRET)


class _Rule(Argmax):
    def __init__(self, policy: FragilePolicy) -> None:
        super().__init__()
        self._policy = policy

    def choose(self, scores: Sequence[float]) -> int:
        self._policy.fail("selection")
        return super().choose(scores)


class Fragile:
    """Best-of-two that fails."""

    policy = FragilePolicy

    @classmethod
    async def run(
        cls, policy: FragilePolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        """Decodes one response, unless it fails."""
        policy.fail("start")
        async for decision in search(proposal, k=2, m=None, select=_Rule(policy)):
            yield decision


def install(folder: Path) -> None:
    """Makes it known as an installed package's to those who have the folder on their path."""
    info = folder / f"{NAME}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[cdserve.decoders]\n{NAME} = {__name__}:Fragile\n")
