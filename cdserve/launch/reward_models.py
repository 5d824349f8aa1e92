"""Reward models, each on its own vLLM pooling engine next to the main engine."""

import asyncio
import json
import os
from argparse import ArgumentError
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer
from vllm.config import ModelConfig, PoolerConfig
from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client_from_engine_args
from vllm.platforms import current_platform
from vllm.pooling_params import PoolingParams
from vllm.utils import random_uuid
from vllm.utils.argparse_utils import FlexibleArgumentParser

from cdserve.config import RewardModelReward, Settings
from cdserve.engine.vllm import (
    AsyncEngineArgs,
    EngineClient,
    as_flags,
    check_version,
    set_cpu_defaults,
    tokens_input,
)
from cdserve.errors import ConfigError, EngineError, RewardFailure, safe_repr
from cdserve.observability.metrics import (
    SCORER_BATCH_SIZE,
    SCORER_CACHED_TOKENS,
    SCORER_TOKENS,
    SCORER_WAIT_SECONDS,
)
from cdserve.scoring import ModelOutput
from cdserve.scoring.batching import Batcher
from cdserve.scoring.reward_model import Dialogue, Outputs, tokens

_OWN = ("model", "runner", "convert", "disable_log_stats")
_CPU_DEFAULTS = {
    "enforce_eager": True,
    "kv_cache_memory_bytes": 512 << 20,
    # vLLM's default of 128 tokens per block would cache little of a short prefix.
    "block_size": 32,
}
_LOOK_AFTER = 1.0
"""Seconds between health checks: vLLM drops requests that arrive while an engine dies."""
_BINDING = "VLLM_CPU_OMP_THREADS_BIND"


class ModelEngine:
    """A vLLM engine that scores dialogues while it runs.

    Args:
        reward: first reward that names the model; label of its metrics.
        args: arguments of the engine.
        marker: id of the token that ends a step, for a process reward model; None for a model that
            scores whole dialogues.
    """

    def __init__(self, reward: str, args: AsyncEngineArgs, marker: int | None) -> None:
        self._batch_size = SCORER_BATCH_SIZE.labels(reward)
        self._tokens = SCORER_TOKENS.labels(reward)
        self._cached_tokens = SCORER_CACHED_TOKENS.labels(reward)
        self._args = args
        self._marker = marker
        self._engine: EngineClient | None = None
        # One thread: tokenizers are not thread-safe.
        self._thread = ThreadPoolExecutor(1, "reward-model-tokenizer")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Starts the engine; stops it at the end.

        Raises:
            RuntimeError: vLLM cannot start it; its log says why.
        """
        async with AsyncExitStack() as stack:
            stack.callback(self._thread.shutdown, wait=False, cancel_futures=True)
            with _unbound():
                self._engine = await stack.enter_async_context(
                    build_async_engine_client_from_engine_args(self._args)
                )
            yield

    async def check_health(self) -> None:
        """Raises vLLM's error if the engine is dead."""
        assert self._engine is not None
        await self._engine.check_health()

    async def scores(self, dialogues: Sequence[Dialogue]) -> list[Outputs | BaseException]:
        """Raw outputs of each dialogue, or the exception that it failed with.

        Raises:
            EngineError: the engine died before all dialogues were scored.
        """
        self._batch_size.observe(len(dialogues))
        scored = asyncio.gather(*map(self._outputs, dialogues), return_exceptions=True)
        try:
            while not scored.done():
                lost = self._engine is not None and self._engine.errored
                await asyncio.wait([scored], timeout=_LOOK_AFTER)
                if lost and not scored.done():
                    raise EngineError(f"the engine of the reward model {self._args.model} has died")
        finally:
            scored.cancel()
            await asyncio.gather(scored, return_exceptions=True)
        return scored.result()

    async def _outputs(self, dialogue: Dialogue) -> Outputs:
        assert self._engine is not None  # scoring begins after the start
        tokenizer = self._engine.renderer.get_tokenizer()
        loop = asyncio.get_running_loop()
        token_ids = await loop.run_in_executor(self._thread, tokens, tokenizer, dialogue)
        limit = self._engine.model_config.max_model_len
        if len(token_ids) > limit:
            raise RewardFailure(
                f"failed: prompt and response have {len(token_ids)} tokens for its model, which "
                f"reads up to {limit}",
                self._args.model,
            )
        task = "classify" if self._marker is None else "token_classify"
        raw = PoolingParams(task=task, use_activation=False)
        outputs: list[Any] = []
        async for output in self._engine.encode(
            tokens_input(token_ids), raw, f"reward-{random_uuid()}"
        ):
            outputs = output.outputs.data.tolist()
            self._cached_tokens.inc(output.num_cached_tokens)
        self._tokens.inc(len(token_ids))
        if self._marker is None:
            return [outputs]
        return [row for token, row in zip(token_ids, outputs, strict=True) if token == self._marker]


@dataclass(frozen=True, slots=True)
class RewardModels:
    """The engines of the reward models, and the source of each reward's scores."""

    engines: Sequence[ModelEngine]
    outputs: Mapping[str, ModelOutput]
    required: Sequence[ModelEngine]
    """Engines whose failure would fail requests."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Starts the engines, one after the other; stops them at the end."""
        async with AsyncExitStack() as stack:
            for engine in self.engines:
                await stack.enter_async_context(engine.running())
            yield

    async def check_health(self) -> None:
        """Raises vLLM's error if a required engine is dead."""
        for engine in self.required:
            await engine.check_health()


@dataclass(frozen=True, slots=True)
class _Planned:
    first: str
    """First reward that names the model."""
    settings: RewardModelReward
    config: ModelConfig
    engine: ModelEngine
    queue: Batcher[Dialogue, Outputs]


def plan(settings: Settings) -> RewardModels:
    """Plans the engines of the reward models; rewards of the same model share an engine.

    Raises:
        ConfigError: a model cannot be read, is not for sequence classification, or lacks the output
            or marker; a flag is invalid; or rewards that share an engine set different batches.
    """
    planned: dict[str, _Planned] = {}
    outputs: dict[str, ModelOutput] = {}
    required: set[ModelEngine] = set()
    for name, reward in settings.rewards.items():
        if not isinstance(reward, RewardModelReward):
            continue
        marker = reward.steps and reward.steps.marker
        key = json.dumps([reward.model, reward.engine, marker], sort_keys=True)
        if key not in planned:
            planned[key] = _planned(name, reward)
        model = planned[key]
        for field in ("max_batch", "max_wait"):
            ours, theirs = getattr(reward, field), getattr(model.settings, field)
            if ours != theirs:
                raise ConfigError(
                    f"rewards.{name}.{field} is {ours}; rewards.{model.first}, which shares the "
                    f"model's engine, has {theirs}"
                )
        labels = model.config.hf_config
        outputs[name] = ModelOutput(
            queue=model.queue,
            column=_column(name, reward, labels.id2label),
            independent=labels.problem_type == "multi_label_classification",
        )
        if reward.on_failure == "error":
            required.add(model.engine)
    engines = [model.engine for model in planned.values()]
    return RewardModels(engines, outputs, required=list(required))


def _planned(name: str, reward: RewardModelReward) -> _Planned:
    check_version()
    args = _engine_args(name, reward)
    try:
        config = args.create_model_config()
    except (OSError, ValueError) as error:
        raise ConfigError(f"rewards.{name}.model is {safe_repr(reward.model)}: {error}") from error
    if reward.steps is not None:
        args.pooler_config = PoolerConfig(task="token_classify")
    elif config.score_type != "cross-encoder":  # vLLM's term for a classification head
        raise ConfigError(
            f"rewards.{name}.model is {safe_repr(reward.model)}, a {config.architecture}; "
            "a model for sequence classification is needed"
        )
    own = getattr(config.hf_config, "dtype", None)
    if args.dtype == "auto" and own is not None:  # vLLM would convert float32 to float16
        args.dtype = own
    engine = ModelEngine(name, args, None if reward.steps is None else _marker(name, reward))
    # Two batches: one is tokenised while the other is computed.
    queue = Batcher(
        engine.scores,
        max_batch=reward.max_batch,
        max_wait=reward.max_wait,
        concurrency=2,
        on_wait=SCORER_WAIT_SECONDS.labels(name).observe,
    )
    return _Planned(name, reward, config, engine, queue)


def _marker(name: str, reward: RewardModelReward) -> int:
    """Token id of the step marker."""
    assert reward.steps is not None
    try:
        tokenizer = AutoTokenizer.from_pretrained(reward.model)
    except (OSError, ValueError) as error:
        raise ConfigError(f"rewards.{name}.model has no tokenizer: {error}") from error
    token_ids: list[int] = tokenizer.encode(reward.steps.marker, add_special_tokens=False)
    if len(token_ids) != 1:
        raise ConfigError(
            f"rewards.{name}.steps.marker is {safe_repr(reward.steps.marker)}, which is "
            f"{len(token_ids)} tokens of the model's; it must be one"
        )
    return token_ids[0]


def _engine_args(name: str, reward: RewardModelReward) -> AsyncEngineArgs:
    key = f"rewards.{name}.engine"
    flags = {flag.replace("-", "_"): value for flag, value in reward.engine.items()}
    if taken := [flag for flag in _OWN if flag in flags]:
        source = f" from rewards.{name}.model" if taken[0] == "model" else ""
        raise ConfigError(
            f"{key}.{taken[0]} is {safe_repr(flags[taken[0]])}; remove it: cdserve sets this "
            f"flag{source}"
        )
    if current_platform.is_cpu():
        flags = _CPU_DEFAULTS | flags
    parser = AsyncEngineArgs.add_cli_args(
        FlexibleArgumentParser(prog=key, add_help=False, exit_on_error=False)
    )
    try:
        known, unknown = parser.parse_known_args(as_flags(flags))
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"{key}: {error}") from error
    if unknown:
        raise ConfigError(
            f"{key} has {safe_repr(unknown[0])}, which is not a flag of vLLM's engine"
        )
    known.model = reward.model
    known.runner = "pooling"
    set_cpu_defaults(known)
    known.disable_log_stats = True  # vLLM has one set of metrics per process: the main engine's
    return AsyncEngineArgs.from_cli_args(known)


def _column(name: str, reward: RewardModelReward, labels: Mapping[int, str]) -> int:
    """Index of the reward's output."""
    asked = reward.output
    accepted = ", ".join(f"{index}: {label}" for index, label in sorted(labels.items()))
    if asked is None and len(labels) > 1:
        raise ConfigError(f"rewards.{name}.output is missing; the model has {accepted}")
    matching = [i for i, label in labels.items() if asked in (None, label, i)]
    if not matching:
        raise ConfigError(f"rewards.{name}.output is {safe_repr(asked)}; the model has {accepted}")
    return matching[0]


@contextmanager
def _unbound() -> Iterator[None]:
    """Lets engines that start in this context use all cores, unless the operator binds threads.

    On CPU, vLLM would bind the threads of every engine to the same cores.
    """
    if _BINDING in os.environ or not current_platform.is_cpu():
        yield
        return
    os.environ[_BINDING] = "nobind"
    try:
        yield
    finally:
        del os.environ[_BINDING]
