"""What the engine's side uses of vLLM, in one place, and the version it is made for."""

import json
from collections.abc import Mapping
from typing import Any

import vllm
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import EngineClient
from vllm.exceptions import VLLMValidationError
from vllm.inputs.engine import TokensInput, tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tokenizers import TokenizerLike
from vllm.utils.async_utils import merge_async_iterators
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from cdserve.errors import ConfigError

VERSION = "0.32.0"
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""The executor in EngineCore's own process.

On CPU vLLM's usual two wait for each other by spinning, which takes a core; it refuses the
executor's short name, ``uni``, there.
"""

__all__ = [
    "ONE_PROCESS",
    "VERSION",
    "AsyncEngineArgs",
    "CompletionOutput",
    "EngineClient",
    "IncrementalDetokenizer",
    "LoRARequest",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "TokenizerLike",
    "TokensInput",
    "VLLMValidationError",
    "as_flags",
    "check_version",
    "detokenizer",
    "merge_async_iterators",
    "tokens_input",
]


def check_version() -> None:
    """Raises ConfigError if another vLLM than VERSION is installed."""
    installed = vllm.__version__.partition("+")[0]
    if installed != VERSION:
        raise ConfigError(f"vLLM {installed} is installed; cdserve is made for {VERSION}")


def as_flags(engine: Mapping[str, Any]) -> list[str]:
    """The settings' ``engine`` section as vLLM's command line has it."""
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
    """vLLM's own detokenizer, for text that follows ``prefix``, with the params' stop strings."""
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
