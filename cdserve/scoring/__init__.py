"""Rewards, and the objectives of requests: weighted sums of rewards."""

from cdserve.scoring.build import HeadOutput, build
from cdserve.scoring.extraction import PATTERN_SECONDS, Extractor, Extractors
from cdserve.scoring.held_out import HeldOut
from cdserve.scoring.objective import Objective, advise, objective
from cdserve.scoring.reward import Floats, Response, Reward, token_sums
from cdserve.scoring.reward_model import ModelOutput

__all__ = [
    "PATTERN_SECONDS",
    "Extractor",
    "Extractors",
    "Floats",
    "HeadOutput",
    "HeldOut",
    "ModelOutput",
    "Objective",
    "Response",
    "Reward",
    "advise",
    "build",
    "objective",
    "token_sums",
]
