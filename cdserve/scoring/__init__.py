"""Rewards and the objectives that requests make of them."""

from cdserve.scoring.objective import Objective, objective
from cdserve.scoring.rewards import Response, Reward, build

__all__ = ["Objective", "Response", "Reward", "build", "objective"]
