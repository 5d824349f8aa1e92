"""vLLM's arguments and environment that put cdserve into its workers."""

import logging
import os
from argparse import Namespace

import vllm.envs as envs
from vllm.config.compilation import CUDAGraphMode
from vllm.model_executor.models.registry import _MULTIMODAL_MODELS, _TEXT_GENERATION_MODELS
from vllm.transformers_utils.config import get_config
from vllm.triton_utils import HAS_TRITON

from cdserve.config import BUILT_IN_REWARDS, ConfidenceReward, Settings
from cdserve.errors import ConfigError
from cdserve.launch.heads import Heads
from cdserve.worker.register import ARCHITECTURE

_LOGGER = logging.getLogger("vllm.cdserve")
_PROCESSOR = "cdserve.worker.runner_v1:RowTracker"
_WORKER = "cdserve.worker.worker.Worker"
_SCHEDULER = "cdserve.worker.scheduler.scheduler"
_UNFIT = {
    "speculative_config": "rows of drafted tokens belong to no request",
    "enable_batch_sharded_sampling": "the model does not compute the logits of a sharded batch",
    "enable_dbo": "it splits the tokens of a step into two batches",
}


def needed(settings: Settings, heads: Heads) -> bool:
    """Whether the worker has heads, members or statistics of tokens to compute."""
    return bool(heads.values.paths or settings.members or settings.token_stats)


def fitting(args: Namespace, settings: Settings, heads: Heads) -> Settings:
    """The settings, without the built-in rewards if vLLM's worker cannot compute them.

    The log says why. vLLM's own worker then serves the model.
    """
    if not settings.has_built_in_rewards:
        return settings
    others = settings.model_copy(update={"rewards": {}})
    try:
        if not needed(others, heads):
            _check_model(args)
        _check(args, settings, heads)
    except ConfigError as error:
        names = " and ".join(BUILT_IN_REWARDS)
        _LOGGER.warning("the built-in rewards %s are off: %s", names, error)
        return others
    return settings


def configure(args: Namespace, settings: Settings, heads: Heads) -> None:
    """Adds to vLLM's arguments what cdserve's worker needs.

    Raises:
        ConfigError: heads or members cannot work with the arguments.
    """
    _check(args, settings, heads)
    if not runner_v2():  # V2 takes its adapter from the model
        args.logits_processors = [*(args.logits_processors or []), _PROCESSOR]
    args.additional_config = {
        **(args.additional_config or {}),
        "cdserve": {
            "values": list(heads.values.paths),
            "q": list(heads.q.paths),
            "members": settings.members,
            "token_stats": settings.token_stats,
            "kernels": settings.kernels,
        },
    }
    args.worker_cls = _WORKER
    args.scheduler_cls = args.scheduler_cls or _SCHEDULER
    if _reads_forward(settings) and args.compilation_config.cudagraph_mode is None:
        args.compilation_config.cudagraph_mode = CUDAGraphMode.PIECEWISE


def set_environment(args: Namespace) -> None:
    """Sets what vLLM's processes, which are spawned, read at import."""
    config = get_config(args.model, args.trust_remote_code, revision=args.revision)
    os.environ[ARCHITECTURE] = config.architectures[0]
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = str(int(runner_v2()))
    # A graph of the whole forward pass would repeat one step's choice of members.
    os.environ["VLLM_USE_BREAKABLE_CUDAGRAPH"] = "0"


def runner_v2() -> bool:
    """Whether vLLM uses model runner V2: if Triton is installed, unless the environment decides."""
    override: bool | None = envs.VLLM_USE_V2_MODEL_RUNNER
    return bool(HAS_TRITON) if override is None else override


def _check_model(args: Namespace) -> None:
    """Raises ConfigError for a model that is served, but not known to run in the wrapper."""
    if args.hf_overrides or args.model_impl not in ("auto", "vllm"):
        raise ConfigError("the model's class is changed by --hf-overrides or --model-impl")
    if args.runner not in ("auto", "generate"):
        raise ConfigError(f"--runner is {args.runner}; the model does not generate text")
    try:
        config = get_config(args.model, args.trust_remote_code, revision=args.revision)
    except Exception as error:  # vLLM may know how to read it in another way
        raise ConfigError(f"the model's configuration cannot be read: {error}") from error
    names = config.architectures or []
    if not any(name in {**_TEXT_GENERATION_MODELS, **_MULTIMODAL_MODELS} for name in names[:1]):
        raise ConfigError(
            f"the architecture {', '.join(names[:1]) or 'of the model'} is not one of vLLM's own "
            "text models"
        )


def _check(args: Namespace, settings: Settings, heads: Heads) -> None:
    for name, reason in _UNFIT.items():
        if value := getattr(args, name):
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is {value}; heads and members cannot work with it: {reason}")
    if args.worker_cls != "auto":
        raise ConfigError(
            f"--worker-cls is {args.worker_cls}; heads and members need cdserve's own "
            "(--worker-extension-cls can be used)"
        )
    tied = [path for path, head in heads.q.configs.items() if head.architecture == "tied"]
    if tied and args.tensor_parallel_size > 1:
        raise ConfigError(
            f"--tensor-parallel-size is {args.tensor_parallel_size}; the tied Q-head {tied[0]} "
            "reads the whole LM head, which is sharded with tensor parallelism; use a lowrank head"
        )
    if (settings.members or settings.token_stats) and args.pipeline_parallel_size > 1:
        raise ConfigError(
            f"--pipeline-parallel-size is {args.pipeline_parallel_size}; members and rewards of "
            "log p or confidence need the whole base model on one stage"
        )
    if (settings.members or settings.token_stats) and args.enable_lora:
        raise ConfigError(
            "--enable-lora cannot be used with members and rewards of log p or confidence: they "
            "read logits of rows for which vLLM's LoRA layers have none"
        )
    _check_top_k(args, settings)
    _check_graphs(args.compilation_config.cudagraph_mode, settings, heads)


def _check_top_k(args: Namespace, settings: Settings) -> None:
    for name, reward in settings.rewards.items():
        if not isinstance(reward, ConfidenceReward) or not reward.most_likely:
            continue
        config = get_config(args.model, args.trust_remote_code, revision=args.revision)
        vocabulary: int = config.get_text_config().vocab_size
        if reward.most_likely > vocabulary:
            raise ConfigError(
                f"rewards.{name}.top_k is {reward.most_likely}; the model's vocabulary has "
                f"{vocabulary} tokens"
            )


def _check_graphs(mode: CUDAGraphMode | None, settings: Settings, heads: Heads) -> None:
    if mode is None:
        return
    if _reads_forward(settings) and mode.has_full_cudagraphs():
        raise ConfigError(
            f"--compilation-config has cudagraph_mode {mode.name}; with members or rewards of "
            "log p it can be PIECEWISE or NONE: a graph of the whole forward pass "
            "would repeat what one step did"
        )
    reads_texts = heads.values.paths or settings.token_stats
    if reads_texts and mode.mixed_mode() == CUDAGraphMode.FULL:
        raise ConfigError(
            f"--compilation-config has cudagraph_mode {mode.name}; with value heads or rewards of "
            "confidence it can be FULL_AND_PIECEWISE, FULL_DECODE_ONLY, PIECEWISE or NONE: a full "
            "graph would skip what is computed of each token of a prompt"
        )


def _reads_forward(settings: Settings) -> bool:
    """Whether the wrapper's ``forward`` has to run in every step.

    ``forward`` chooses the members that run and reads the tokens whose log p is computed. A full
    CUDA graph replays the model without calling it.
    """
    return bool(settings.members) or any("." not in name for name in settings.token_stats)
