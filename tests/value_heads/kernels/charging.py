"""Charging against a plain walk along each path."""

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from value_heads.kernels import Operations, PathKL

from .cases import DEVICE

SLOTS = 5
BUDGETS = st.lists(
    st.floats(0, 4, width=32) | st.sampled_from([0.0, 0.5, math.inf]),
    min_size=SLOTS,
    max_size=SLOTS,
)
_NATS = st.floats(0, 2, width=32) | st.sampled_from([0.0, 0.5, math.nan, math.inf])
_PLACES = st.integers(0, SLOTS - 1)
LAUNCHES = st.lists(st.dictionaries(_PLACES, st.tuples(st.integers(0, 3), _NATS)), max_size=8)
"""Of each launch the slots that take part, with tokens of the prefix and nats of the step."""
Launch = dict[int, tuple[int, float]]


@dataclass
class Walk:
    """One request's path: of several steps from the same prefix, the last counts."""

    budget: float
    spent: float = 0.0
    unsteered: int = 0
    at: int = -1
    nats: float = 0.0
    over: bool = False

    def charge(self, tokens: int, nats: float) -> tuple[float, int, bool]:
        """Nats so far, steps left unsteered, whether this step is one."""
        if tokens != self.at:
            self.spent += self.nats
            self.unsteered += self.over
            self.at = tokens
        self.over = self.spent + nats > self.budget * (1 - 1e-5)
        self.nats = 0.0 if self.over else nats
        return self.spent + self.nats, self.unsteered + self.over, self.over


def check(kernels: Operations, budgets: list[float], launches: list[Launch]) -> None:
    """Charge by both, and expect the same of each row of each launch."""
    paths, walks = PathKL.zeros(SLOTS, DEVICE), [Walk(budget) for budget in budgets]
    for launch in launches:
        slots, tokens = list(launch), [tokens for tokens, _ in launch.values()]
        nats = [nats for _, nats in launch.values()]
        so_far, over = kernels.charge(
            paths,
            torch.tensor(slots, dtype=torch.int64, device=DEVICE),
            torch.tensor(tokens, dtype=torch.int64, device=DEVICE),
            torch.tensor(nats, dtype=torch.float32, device=DEVICE),
            torch.tensor([budgets[slot] for slot in slots], dtype=torch.float32, device=DEVICE),
        )
        expected = [walks[slot].charge(*launch[slot]) for slot in slots]
        assert over.dtype == torch.bool
        assert over.tolist() == [passed for *_, passed in expected]
        told = torch.tensor([path for *path, _ in expected], dtype=torch.float32).view(-1, 2)
        torch.testing.assert_close(so_far.cpu(), told, equal_nan=True, rtol=0, atol=0)
    spent = torch.tensor([walk.spent for walk in walks], dtype=torch.float64)
    torch.testing.assert_close(paths.spent.cpu(), spent, equal_nan=True, rtol=0, atol=0)
    assert paths.unsteered.tolist() == [walk.unsteered for walk in walks]
    assert paths.at.tolist() == [walk.at for walk in walks]


def rounded_up_to_the_limit() -> tuple[float, float]:
    """A budget, and nats that pass its limit by less than float32 can tell."""
    for tenths in range(1, 100):
        budget = torch.tensor(tenths / 10).item()
        nats = torch.tensor(budget * (1 - 1e-5)).item()
        if nats > budget * (1 - 1e-5):
            return budget, nats
    raise AssertionError("no such budget")
