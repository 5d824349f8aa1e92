"""Rewards, and the weighted sums of them that requests ask for."""

from cdserve.scoring.build import HeadOutput, build
from cdserve.scoring.objective import Objective, objective
from cdserve.scoring.reward import Response, Reward
from cdserve.scoring.reward_model import ModelOutput

__all__ = ["HeadOutput", "ModelOutput", "Objective", "Response", "Reward", "build", "objective"]
