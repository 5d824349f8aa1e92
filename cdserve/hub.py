"""Names of models: folders on this machine, or names on the Hugging Face Hub."""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from cdserve.config import RewardModelReward, Settings
from cdserve.errors import ConfigError, safe_repr

_SECONDS = 5.0
"""Timeout of the question whether the Hub has a model."""
_CONFIG = "config.json"


def models_of(settings: Settings) -> dict[str, str]:
    """Every model that the settings name, by key."""
    models = {"model": settings.model}
    models |= {f"members.{name}": path for name, path in settings.members.items()}
    for name, reward in settings.rewards.items():
        if isinstance(reward, RewardModelReward):
            models[f"rewards.{name}.model"] = reward.model
    return models


def has_token(settings: Settings, flags: Sequence[str]) -> bool:
    """Whether vLLM's flags, in the settings or on the command line, have a token of the Hub."""
    names = [*settings.engine, *flags]
    return any(name.lstrip("-").replace("_", "-").startswith("hf-token") for name in names)


def check_models(models: Mapping[str, str], *, has_token: bool = False) -> None:
    """Checks that every model exists, in seconds; vLLM retries for minutes.

    A model that may exist passes, such as one of a Hub that answers with an unexpected status.

    Args:
        models: folder or Hub name by the key or flag that names the model.
        has_token: whether vLLM's flags have a token, to which the Hub may show more models.

    Raises:
        ConfigError: a folder does not exist, the Hub does not have the model, or a model that is
            not cached cannot be looked up. The message names the key, the model and what to check.
    """
    for key, model in models.items():
        if (problem := _problem(model, has_token)) is not None:
            raise ConfigError(f"{key} is {safe_repr(model)}, {problem}")


@cache
def _problem(model: str, has_token: bool) -> str | None:
    """End of a sentence about a model that cannot be used; None if no problem is known."""
    if os.path.exists(model):
        return None
    if model.startswith((".", "/", "~")):
        return "which does not exist"
    if "://" in model or ".gguf" in model.lower() or _uses_model_scope() or _is_cached(model):
        return None
    if model.count("/") > 1:
        return "which is neither a folder nor a name on the Hub, ORGANISATION/MODEL"
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    hub = constants.ENDPOINT
    try:
        info = HfApi().model_info(model, timeout=_SECONDS)
    except RepositoryNotFoundError:
        if has_token:
            return None
        return (
            f"which is neither a folder nor a model on {hub}; check the name, and HF_TOKEN if the "
            "model is private"
        )
    except (HfHubHTTPError, HFValidationError):  # such as a quantisation after a colon
        return None
    except OfflineModeIsEnabled:
        return (
            "which is neither a folder nor a model in the cache, and HF_HUB_OFFLINE forbids "
            "downloads; check the name"
        )
    except Exception as error:  # connections fail with errors of the HTTP library
        return (
            f"which is neither a folder nor a model in the cache, and {hub} cannot be reached "
            f"({type(error).__name__}); check the name and the network"
        )
    if info.gated and not has_token and get_token() is None:
        return f"which is gated; accept its terms at {hub}/{model} and set HF_TOKEN"
    return None


def _is_cached(model: str) -> bool:
    """Whether the Hub's cache has the configuration of any revision of a model."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE, f"models--{model.replace('/', '--')}", "snapshots")
    return any(folder.glob(f"*/{_CONFIG}"))


def _uses_model_scope() -> bool:
    """Whether vLLM fetches models from ModelScope."""
    return os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true")
