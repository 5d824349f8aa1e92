"""A ``TinyModel`` behind vLLM's ``EngineClient``: no weights, no worker, no other process.

Rendering, detokenization, stop strings, log-probabilities, aborts and metrics are vLLM's own. Only
the engine core is replaced. It draws tokens from the model and does what ``cdserve.worker`` does
for a ``WorkerRequest``: it tilts, mixes, and writes V, path KL and statistics of tokens into shared
tables.
"""

import asyncio
import math
import os
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI
from vllm.renderers.registry import renderer_from_config
from vllm.usage.usage_lib import UsageContext
from vllm.v1.core.sched.utils import check_stop
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
)
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.loggers import StatLoggerManager
from vllm.v1.metrics.stats import PrefillStats, SchedulerStats
from vllm.v1.outputs import LogprobsLists, LogprobsTensors
from vllm.v1.request import Request

from cdserve.engine.aligned import AlignedEngine
from cdserve.engine.vllm import AsyncEngineArgs
from cdserve.launch import serve
from cdserve.launch.application import Application
from cdserve.shared_table import TableView, Ticket
from cdserve.testing.model import FLOOR, Floats, TinyModel, kl, log_softmax, mixed, tilted
from cdserve.worker.request import WorkerRequest
from value_heads import HeadConfig

_WORDS = 6
"""Words of the default model."""


@asynccontextmanager
async def build_engine(
    args: Namespace,
    *,
    client_config: Mapping[str, Any] | None = None,
    model: TinyModel | None = None,
    step_seconds: float = 0.0,
) -> AsyncIterator["FakeEngine"]:
    """A ``FakeEngine`` in the place of vLLM's ``build_async_engine_client``.

    Args:
        args: vLLM's arguments.
        client_config: unused; vLLM's function has it.
        model: the model; None for ``default_model``.
        step_seconds: duration of a step.
    """
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config(
        UsageContext.OPENAI_API_SERVER
    )
    engine = FakeEngine(config, model, step_seconds)
    try:
        yield engine
    finally:
        engine.shutdown()


@asynccontextmanager
async def running_app(
    application: Application, model: TinyModel | None = None, step_seconds: float = 0.0
) -> AsyncIterator[tuple[AlignedEngine, FastAPI]]:
    """The aligned engine and the app of an application, on a ``FakeEngine`` in this process.

    Environment variables that the start of a server sets are restored at the end. Reward models of
    the settings would start real engines.

    Args:
        application: from ``cdserve.launch.application.Application.build``.
        model: the model; None for ``default_model``.
        step_seconds: duration of a step.
    """
    build = partial(build_engine, model=model, step_seconds=step_seconds)
    environment = dict(os.environ)
    try:
        async with serve.running_app(application, build) as running:
            yield running
    finally:
        os.environ.clear()
        os.environ.update(environment)


class FakeEngine(AsyncLLM):  # type: ignore[misc]
    """vLLM's engine client on a ``TinyModel``.

    It honours ``max_tokens``, ``min_tokens``, ``ignore_eos``, ``temperature``, ``seed``, ``stop``,
    ``stop_token_ids``, ``logprobs``, ``prompt_logprobs``, ``n`` and ``output_kind``. It ignores all
    other sampling parameters, grammars and LoRA adapters, and has no prefix cache. A request
    without a seed is seeded by its place in the order of arrival.

    Args:
        vllm_config: model folder (for its configuration and tokenizer), limits, and heads and
            members in ``additional_config``.
        model: the model; None for ``default_model``.
        step_seconds: duration of a step, which draws one token for each running request.
    """

    def __init__(
        self, vllm_config: Any, model: TinyModel | None = None, step_seconds: float = 0.0
    ) -> None:
        # As ``AsyncLLM.__init__``, which would start an engine core.
        self.vllm_config = vllm_config
        self.model_config = vllm_config.model_config
        self.scheduler_config = vllm_config.scheduler_config
        self.observability_config = vllm_config.observability_config
        self.log_requests, self.log_stats = False, True
        self.admission_stats = self.profiler = self.output_handler = None
        self.renderer = renderer_from_config(vllm_config)
        self.input_processor = InputProcessor(vllm_config, self.renderer)
        tokenizer = self.renderer.get_tokenizer()
        self.output_processor = OutputProcessor(tokenizer, log_stats=True)
        self.model = model or default_model(tokenizer)
        self.engine_core = _Core(vllm_config, self.model, step_seconds)
        self.models = self.engine_core.models
        """Number of each model: ``base`` and members."""
        self.logger_manager = StatLoggerManager(vllm_config, engine_idxs=[0])
        self._client_count = 1
        self._profile_lock = asyncio.Lock()
        self._run_output_handler()


def default_model(tokenizer: Any) -> TinyModel:
    """A model of the first words of at least four letters in the tokenizer, and the full stop."""
    texts = {token: tokenizer.decode([token]) for token in range(len(tokenizer))}
    words = [
        t for t, word in texts.items() if len(word) > 4 and word[0] == " " and word[1:].isalpha()
    ]
    stops = [token for token, text in texts.items() if text == "."]
    return TinyModel.of([*words[:_WORDS], *stops[:1]], tokenizer.eos_token_id)


@dataclass(slots=True)
class _Running:
    """A request in the core.

    Attributes:
        request: vLLM's.
        asked: what the server asks of the worker.
        random: draws its tokens.
        path_kl: KL of its steps so far, in nats.
        unsteered: steps that its budget left unsteered.
    """

    request: Request
    asked: WorkerRequest
    random: np.random.Generator
    path_kl: float = 0.0
    unsteered: int = 0


class _Core(EngineCoreClient):  # type: ignore[misc]
    """Draws the tokens of requests, one for each of them per step.

    Args:
        vllm_config: vLLM's configuration.
        model: the model.
        step_seconds: duration of a step.
    """

    engine_ranks_managed = (0,)

    def __init__(self, vllm_config: Any, model: TinyModel, step_seconds: float) -> None:
        ours = (vllm_config.additional_config or {}).get("cdserve", {})
        self._outputs = sum(map(_outputs, ours.get("values", ())))
        self._token_stats = ours.get("token_stats", ())
        self.models = {name: i for i, name in enumerate(["base", *ours.get("members", ())])}
        self._model = model
        self._step_seconds = step_seconds
        self._max_model_len = vllm_config.model_config.max_model_len
        self._max_running = vllm_config.scheduler_config.max_num_seqs
        self._vocabulary = vllm_config.model_config.get_vocab_size()
        self._requests: dict[str, _Running] = {}
        self._added = asyncio.Event()
        self._arrived = 0
        self.resources = SimpleNamespace(engine_dead=False)

    def shutdown(self, timeout: float | None = None) -> None:
        self.resources.engine_dead = True
        self._requests.clear()

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    async def add_lora_async(self, lora_request: Any) -> bool:
        return True

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        self._arrived += 1
        params = request.sampling_params
        seed = [0, self._arrived] if params.seed is None else [1, params.seed % 2**63]
        self._requests[request.request_id] = _Running(
            Request.from_engine_core_request(request, None),
            WorkerRequest.of(params.extra_args) or WorkerRequest(),
            np.random.default_rng(seed),
        )
        self._added.set()

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._requests.pop(request_id, None)

    async def get_output_async(self) -> EngineCoreOutputs:
        """Runs a step, once there is a request."""
        await asyncio.sleep(self._step_seconds)
        while not self._requests:
            self._added.clear()
            await self._added.wait()
        running = list(self._requests.values())[: self._max_running]
        outputs = [self._step(one) for one in running]
        waiting = len(self._requests) - len(running)
        for output in outputs:
            if output.finished:
                del self._requests[output.request_id]
        left = len(self._requests) - waiting
        stats = SchedulerStats(num_running_reqs=left, num_waiting_reqs=waiting)
        return EngineCoreOutputs(outputs=outputs, scheduler_stats=stats)

    def _step(self, running: _Running) -> EngineCoreOutput:
        """Draws the next token of a request, and writes the results that its request asks for."""
        request, params = running.request, running.request.sampling_params
        first = not request.num_output_tokens
        self._write(running, list(request.all_token_ids), first)
        log_p = self._next(running)
        choice = self._draw(running, log_p)
        token = self._model.tokens[choice]
        request.append_output_token_ids(token)
        if running.asked.path_kl is not None:
            row = [running.path_kl, float(running.unsteered)]
            _write(running.asked.path_kl, {request.num_tokens: row})
        finished = check_stop(request, self._max_model_len)
        output = EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=[token],
            finish_reason=request.get_finished_reason() if finished else None,
            stop_reason=request.stop_reason,
        )
        if params.num_logprobs is not None:
            output.new_logprobs = LogprobsLists(
                *self._logprobs([token], params.num_logprobs, log_p)
            )
        if first:
            kinds = (EngineCoreEventType.QUEUED, EngineCoreEventType.SCHEDULED)
            output.events = [EngineCoreEvent.new_event(kind) for kind in kinds]
            output.prefill_stats = PrefillStats()
            output.prefill_stats.set(request.num_prompt_tokens, 0, 0)
            if params.prompt_logprobs is not None:
                rows = self._logprobs(
                    request.prompt_token_ids[1:], params.prompt_logprobs, self._model.log_p()
                )
                output.new_prompt_logprobs_tensors = LogprobsTensors(*map(torch.as_tensor, rows))
        return output

    def _next(self, running: _Running) -> Floats:
        """log p of the next token, steered as far as the budget allows; counts its KL."""
        asked, model = running.asked, self._model
        own = logits = model.log_p()
        if not asked.steered:
            return own
        if asked.mix is not None:
            models = [model.log_p(self.models[name]) for name in asked.mix]
            logits = mixed(models, list(asked.mix.values()))
        if asked.tilt is not None:
            written = list(running.request.all_token_ids)
            delta = np.sum(
                [by * model.q(written, i) for i, by in asked.tilt.coefficients.items()], axis=0
            )
            logits = tilted(logits, delta, asked.tilt.top_k)
        temperature = running.request.sampling_params.temperature or 1.0
        nats = kl(log_softmax(logits / temperature), log_softmax(own / temperature))
        budget = math.inf if asked.kl_budget is None else asked.kl_budget
        if running.path_kl + nats > budget:
            running.unsteered += 1
            return own
        running.path_kl += nats
        return log_softmax(logits)

    def _draw(self, running: _Running, log_p: Floats) -> int:
        """Index of the token drawn."""
        request, params = running.request, running.request.sampling_params
        log_p = log_p.copy()
        if request.num_output_tokens < params.min_tokens:
            stops = [i for i, t in enumerate(self._model.tokens) if t in params.all_stop_token_ids]
            log_p[stops] = -np.inf
        if params.temperature == 0:
            return int(log_p.argmax())
        p = np.exp(log_softmax(log_p / params.temperature))
        return int(running.random.choice(len(p), p=p))

    def _logprobs(
        self, token_ids: Sequence[int], count: int, log_p: Floats
    ) -> tuple[Any, Any, Any]:
        """Rows of vLLM's logprobs: each token, then the ``count`` most likely ones, and its rank.

        Args:
            count: -1 for the whole vocabulary.
        """
        known = dict(zip(self._model.tokens, log_p.tolist(), strict=True))
        likely = sorted(known, key=lambda token: -known[token])
        order = [*likely, *(token for token in range(self._vocabulary) if token not in known)]
        top = order[: len(order) if count < 0 else count]
        ids = np.array([[token, *top] for token in token_ids], np.int64).reshape(-1, 1 + len(top))
        numbers = [[known.get(token, FLOOR) for token in row] for row in ids.tolist()]
        ranks = [order.index(token) + 1 for token in token_ids]
        return ids, np.array(numbers, np.float32).reshape(ids.shape), np.array(ranks, np.int64)

    def _write(self, running: _Running, written: list[int], first: bool) -> None:
        """Writes V and statistics of tokens of prefixes that the step's row covers.

        Args:
            written: the prompt and the tokens drawn before this step.
            first: whether this is the request's first step.
        """
        asked, prompt = running.asked, running.request.num_prompt_tokens
        if asked.values is not None:
            every = range(1, prompt + 1) if first and asked.value_length is None else []
            reached = len(written) - (asked.value_length or 0)
            drawn = asked.drawn_values and not first and reached < 0
            step = asked.value_every
            repeated = step is not None and reached > 0 and reached % step == 0
            lengths = every or ([len(written)] if drawn or repeated or reached == 0 else [])
            _write(asked.values, {n: self._values(written[:n]) for n in lengths})
        if asked.token_stats is not None and asked.token_stats_start is None:
            _write(asked.token_stats, {len(written): self._stats(written[-1])})
        elif asked.token_stats is not None and first:
            since = range((asked.token_stats_start or 0) + 1, prompt + 1)
            _write(asked.token_stats, {n: self._stats(written[n - 1]) for n in since})

    def _values(self, token_ids: Sequence[int]) -> list[float]:
        return [self._model.value(token_ids, output) for output in range(self._outputs)]

    def _stats(self, token: int) -> list[float]:
        """Statistics of a token by column of the table."""
        return [self._stat(token, *name.partition(".")[::2]) for name in self._token_stats]

    def _stat(self, token: int, model: str, confidence: str) -> float:
        number = self.models[model]
        if not confidence:
            return self._model.log_p_of([token], number)[0]
        log_p = np.full(self._vocabulary, FLOOR)
        log_p[list(self._model.tokens)] = self._model.log_p(number)
        if confidence == "self_certainty":
            return float(-log_p.mean() - math.log(self._vocabulary))
        if confidence == "negative_entropy":
            return float(np.exp(log_p) @ log_p)
        return float(-np.sort(log_p)[-int(confidence.removeprefix("top_")) :].mean())


def _write(ticket: Ticket, rows: Mapping[int, Sequence[float]]) -> None:
    """Writes rows by prefix length; drops those of a table that has been removed."""
    if not rows:
        return
    lengths, values = np.array(list(rows)), np.array(list(rows.values()), np.float32)
    with suppress(FileNotFoundError):
        view = _view(ticket.path, values.shape[1])
        numbers = np.full(len(rows), ticket.number)
        view.write(ticket.offset + lengths % ticket.length, numbers, lengths, values)


_view = lru_cache(maxsize=16)(TableView.open)


def _outputs(head: str) -> int:
    """Number of outputs of the head in a folder."""
    return len(HeadConfig.from_json((Path(head) / "config.json").read_text("utf-8")).rewards)
