"""Value heads: small networks that read the value of a prefix off a language model's states."""

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
from .metrics import correlation, correlation_by_bucket
from .mix import mixed
from .q_training import Transitions, fit_q
from .targets import cd_q, lambda_returns, monte_carlo, over_rollouts, soft_expectation
from .tilt import centred_on_top_k, kl
from .training import Examples, FitOptions, FitReport, fit

__all__ = [
    "Examples",
    "FitOptions",
    "FitReport",
    "Head",
    "HeadConfig",
    "QHead",
    "Transitions",
    "ValueHead",
    "binary_cross_entropy",
    "bradley_terry",
    "cd_q",
    "centred_on_top_k",
    "check_base",
    "clipped_squared_error",
    "correlation",
    "correlation_by_bucket",
    "fit",
    "fit_q",
    "hash_base",
    "import_head",
    "kl",
    "lambda_returns",
    "linex",
    "load_head",
    "masked_squared_error",
    "mixed",
    "monte_carlo",
    "over_rollouts",
    "soft_expectation",
]
