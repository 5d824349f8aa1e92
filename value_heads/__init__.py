"""Value heads: small networks that read the value of a prefix off a language model's states."""

from .config import HeadConfig
from .files import check_base, hash_base
from .heads import ValueHead
from .losses import masked_squared_error
from .metrics import correlation, correlation_by_bucket
from .targets import monte_carlo
from .training import Examples, FitOptions, FitReport, fit

__all__ = [
    "Examples",
    "FitOptions",
    "FitReport",
    "HeadConfig",
    "ValueHead",
    "check_base",
    "correlation",
    "correlation_by_bucket",
    "fit",
    "hash_base",
    "masked_squared_error",
    "monte_carlo",
]
