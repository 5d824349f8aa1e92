"""The operations of the hot path as Triton kernels; importing this module imports Triton."""

from .charge import charge
from .score import score
from .steer import steer

__all__ = ["charge", "score", "steer"]
