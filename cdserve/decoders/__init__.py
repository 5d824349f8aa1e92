"""Decoding methods: one search loop, its selection rules, a registry. Nothing depends on vLLM."""

from cdserve.decoders.best_of_n import BestOfN, BestOfNPolicy
from cdserve.decoders.best_of_poisson import BestOfPoisson, BestOfPoissonPolicy
from cdserve.decoders.blockwise_cd import BlockwiseCD, BlockwiseCDPolicy
from cdserve.decoders.candidate import (
    Candidate,
    Comparison,
    Decision,
    Outlook,
    Prefix,
    Proposal,
    Score,
)
from cdserve.decoders.cards import Cards, CardsPolicy
from cdserve.decoders.logit_mixing import LogitMixing, LogitMixingPolicy
from cdserve.decoders.registry import Decoder, load
from cdserve.decoders.rejection import Rejection, RejectionPolicy, Threshold
from cdserve.decoders.search import search
from cdserve.decoders.selection import (
    Argmax,
    Beam,
    KeepSeveral,
    OrderDependentRule,
    SelectionRule,
    Softmax,
    WorstCase,
)
from cdserve.decoders.speculative_rejection import (
    SpeculativeRejection,
    SpeculativeRejectionPolicy,
)
from cdserve.decoders.tokenwise_cd import TokenwiseCD, TokenwiseCDPolicy
from cdserve.decoders.until import UntilField

__all__ = [
    "Argmax",
    "Beam",
    "BestOfN",
    "BestOfNPolicy",
    "BestOfPoisson",
    "BestOfPoissonPolicy",
    "BlockwiseCD",
    "BlockwiseCDPolicy",
    "Candidate",
    "Cards",
    "CardsPolicy",
    "Comparison",
    "Decision",
    "Decoder",
    "KeepSeveral",
    "LogitMixing",
    "LogitMixingPolicy",
    "OrderDependentRule",
    "Outlook",
    "Prefix",
    "Proposal",
    "Rejection",
    "RejectionPolicy",
    "Score",
    "SelectionRule",
    "Softmax",
    "SpeculativeRejection",
    "SpeculativeRejectionPolicy",
    "Threshold",
    "TokenwiseCD",
    "TokenwiseCDPolicy",
    "UntilField",
    "WorstCase",
    "load",
    "search",
]
