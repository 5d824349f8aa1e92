"""The operations of the hot path as Triton kernels; importing this imports Triton."""

from .score import score
from .select import select
from .steer import steer

__all__ = ["score", "select", "steer"]
