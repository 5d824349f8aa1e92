"""Rewards, and the objectives of requests: weighted sums of rewards."""

from cdserve.scoring.build import HeadOutput, build, build_judges
from cdserve.scoring.extraction import PATTERN_SECONDS, Extractor, Extractors
from cdserve.scoring.held_out import HeldOut
from cdserve.scoring.objective import Objective, advise, objective, report_failure
from cdserve.scoring.pairwise import PairwiseJudge
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
    "PairwiseJudge",
    "Response",
    "Reward",
    "advise",
    "build",
    "build_judges",
    "objective",
    "report_failure",
    "token_sums",
]
