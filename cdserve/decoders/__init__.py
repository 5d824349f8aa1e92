"""Decoding methods: one search loop, its selection rules, a registry. Nothing here knows vLLM."""

from cdserve.decoders.best_of_n import BestOfN, BestOfNPolicy
from cdserve.decoders.blockwise_cd import BlockwiseCD, BlockwiseCDPolicy
from cdserve.decoders.candidate import Candidate, Decision, Proposal, Score
from cdserve.decoders.logit_mixing import LogitMixing, LogitMixingPolicy
from cdserve.decoders.registry import Decoder, load
from cdserve.decoders.search import search
from cdserve.decoders.selection import Argmax, Select, Softmax
from cdserve.decoders.tokenwise_cd import TokenwiseCD, TokenwiseCDPolicy

__all__ = [
    "Argmax",
    "BestOfN",
    "BestOfNPolicy",
    "BlockwiseCD",
    "BlockwiseCDPolicy",
    "Candidate",
    "Decision",
    "Decoder",
    "LogitMixing",
    "LogitMixingPolicy",
    "Proposal",
    "Score",
    "Select",
    "Softmax",
    "TokenwiseCD",
    "TokenwiseCDPolicy",
    "load",
    "search",
]
