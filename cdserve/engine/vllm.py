"""The names of vLLM that the engine side uses, and the version that they belong to."""

import json
from collections.abc import Mapping
from typing import Any

import vllm
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.engine.protocol import EngineClient
from vllm.exceptions import VLLMError, VLLMUnprocessableEntityError, VLLMValidationError
from vllm.inputs.engine import TokensInput, tokens_input
from vllm.logprobs import Logprob
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tokenizers import TokenizerLike
from vllm.utils import random_uuid
from vllm.utils.async_utils import merge_async_iterators
from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import IncrementalDetokenizer
from vllm.v1.engine.exceptions import EngineDeadError

from cdserve.errors import ConfigError

VERSION = "0.32.0"
_ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""On CPU vLLM refuses the executor's short name, ``uni``."""

__all__ = [
    "VERSION",
    "AsyncEngineArgs",
    "CompletionOutput",
    "EngineClient",
    "EngineDeadError",
    "IncrementalDetokenizer",
    "LoRARequest",
    "Logprob",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "TokenizerLike",
    "TokensInput",
    "VLLMError",
    "VLLMUnprocessableEntityError",
    "VLLMValidationError",
    "as_flags",
    "check_version",
    "current_platform",
    "detokenizer",
    "merge_async_iterators",
    "random_uuid",
    "set_cpu_defaults",
    "tokens_input",
]


def check_version() -> None:
    """Raises ConfigError if the installed vLLM is not VERSION."""
    installed = vllm.__version__.partition("+")[0]
    if installed != VERSION:
        raise ConfigError(
            f"vLLM {installed} is installed; this version of cdserve requires vLLM {VERSION}"
        )


def set_cpu_defaults(args: Any, *, other_engines: bool = False) -> None:
    """Sets, on a CPU, the arguments whose defaults in vLLM do not work there.

    An argument with another value than vLLM's default is kept.

    - The in-process executor for an unsharded model. vLLM's default has two processes that wait for
      each other by spinning, which takes a core.
    - No chunked prefill: vLLM 0.32 crashes on a seeded request whose prompt is computed in chunks.
    - A KV cache of a quarter of the free memory where less is free than the share that vLLM's
      default requires, such as next to another server, and where other engines start first.

    Args:
        other_engines: whether other engines will take memory before this one.
    """
    if not current_platform.is_cpu():
        return
    pieces = args.tensor_parallel_size * args.pipeline_parallel_size
    if pieces == 1 and args.distributed_executor_backend is None:
        args.distributed_executor_backend = _ONE_PROCESS
    if args.max_num_batched_tokens is None and args.runner != "pooling":
        args.enable_chunked_prefill = bool(args.enable_chunked_prefill)
    share: float = args.gpu_memory_utilization
    if args.kv_cache_memory_bytes is None and share == EngineArgs.gpu_memory_utilization:
        memory = get_memory_node_info(get_allowed_cpu_list()[0].numa_node)
        if other_engines or memory.available_memory < share * memory.total_memory:
            args.kv_cache_memory_bytes = memory.available_memory // 4


def as_flags(engine: Mapping[str, Any]) -> list[str]:
    """The settings' ``engine`` section as flags of vLLM's command line."""
    flags: list[str] = []
    for name, value in engine.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value is False:
            flags.append("--no-" + flag[2:])
        else:
            flags += [flag, value if isinstance(value, str) else json.dumps(value)]
    return flags


def detokenizer(
    tokenizer: TokenizerLike, prefix: list[int], params: SamplingParams
) -> IncrementalDetokenizer:
    """vLLM's own detokenizer for text after ``prefix``, with the stop strings of ``params``."""
    request = EngineCoreRequest(
        request_id="",
        prompt_token_ids=prefix,
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    return IncrementalDetokenizer.from_new_request(tokenizer, request)
