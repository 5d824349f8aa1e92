"""Value heads: small networks that read the value of a prefix off a language model's states."""

from .base import Base
from .cache import CachedRollouts, ShardWriter
from .card import markdown, pair_markdown
from .confidence import confidence_head, mean_confidence
from .config import HeadConfig
from .files import check_base, hash_base
from .heads import Head, QHead, ValueHead, load_head
from .imports import import_head
from .losses import (
    binary_cross_entropy,
    bradley_terry,
    clipped_squared_error,
    linex,
    masked_squared_error,
)
from .methods import ControlledQ, Method, MonteCarlo, TemporalDifference
from .metrics import Bin, calibration, correlation, correlation_by_bucket, pair_accuracy
from .mix import mixed
from .pair_report import PairAccuracy, PairReport, measure_pairs
from .pairs import PrefixPairs
from .report import HeadReport, Remaining, RewardReport, measure
from .rollouts import Rollouts, Shards
from .targets import cd_q, lambda_returns, mean_over_rollouts, monte_carlo, soft_expectation
from .tilt import centred_on_top_k, kl
from .training import FitOptions, FitReport, fit, fit_pairs

__all__ = [
    "Base",
    "Bin",
    "CachedRollouts",
    "ControlledQ",
    "FitOptions",
    "FitReport",
    "Head",
    "HeadConfig",
    "HeadReport",
    "Method",
    "MonteCarlo",
    "PairAccuracy",
    "PairReport",
    "PrefixPairs",
    "QHead",
    "Remaining",
    "RewardReport",
    "Rollouts",
    "ShardWriter",
    "Shards",
    "TemporalDifference",
    "ValueHead",
    "binary_cross_entropy",
    "bradley_terry",
    "calibration",
    "cd_q",
    "centred_on_top_k",
    "check_base",
    "clipped_squared_error",
    "confidence_head",
    "correlation",
    "correlation_by_bucket",
    "fit",
    "fit_pairs",
    "hash_base",
    "import_head",
    "kl",
    "lambda_returns",
    "linex",
    "load_head",
    "markdown",
    "masked_squared_error",
    "mean_confidence",
    "mean_over_rollouts",
    "measure",
    "measure_pairs",
    "mixed",
    "monte_carlo",
    "pair_accuracy",
    "pair_markdown",
    "soft_expectation",
]
