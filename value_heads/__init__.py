"""Value heads: small networks that read the value of a prefix off a language model's states."""

from .config import HeadConfig
from .files import check_base, hash_base
from .heads import Head, QHead, ValueHead
from .losses import masked_squared_error
from .metrics import correlation, correlation_by_bucket
from .mix import mixed
from .q_training import Transitions, fit_q
from .targets import cd_q, monte_carlo
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
    "cd_q",
    "centred_on_top_k",
    "check_base",
    "correlation",
    "correlation_by_bucket",
    "fit",
    "fit_q",
    "hash_base",
    "kl",
    "masked_squared_error",
    "mixed",
    "monte_carlo",
]
