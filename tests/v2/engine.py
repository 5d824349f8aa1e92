"""An engine in this process, configured as ``cdserve serve`` configures its own."""

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from vllm import LLM, EngineArgs, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from cdserve.config import ConfidenceReward, LogLikReward, LogRatioReward, Settings, ValueHeadReward
from cdserve.demo.tiny import HEAD_DIR, MODEL_DIR, Q_HEAD_DIR, REF_DIR, TUNED_DIR
from cdserve.launch import worker_args
from cdserve.launch.heads import attach
from cdserve.launch.vllm_args import parse
from cdserve.shared_table import SharedTable, Ticket
from cdserve.worker.register import register
from cdserve.worker.request import WorkerRequest

from .kinds import Kind

LENGTH = 256
"""Tokens of the longest sequence of a batch, and slots of a ticket's."""
_COLUMNS = {"values": 1, "path_kl": 2}
_ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": LENGTH,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 256,
    "enable_chunked_prefill": True,
    "block_size": 32,
    "kv_cache_memory_bytes": 64 << 20,
}


def settings(members: bool) -> Settings:
    """Those of the demo's heads and confidences, with or without members and rewards of log p."""
    head = ValueHeadReward(kind="value_head", path=str(HEAD_DIR), q_head=str(Q_HEAD_DIR))
    confidences = {
        of: ConfidenceReward(kind="confidence", of=of)
        for of in ("self_certainty", "entropy", "top_k_logprob")
    }
    rewards: dict[str, Any] = {"sentiment": head, **confidences}
    if not members:
        return Settings(model=str(MODEL_DIR), rewards=rewards, engine=_ENGINE)
    ratio = LogRatioReward(kind="log_ratio", tuned="tuned", reference="ref", beta=0.5)
    return Settings(
        model=str(MODEL_DIR),
        rewards={**rewards, "fluent": LogLikReward(kind="loglik"), "dpo": ratio},
        members={"tuned": str(TUNED_DIR), "ref": str(REF_DIR)},
        engine=_ENGINE,
    )


class Engine:
    """The demo's engine, asked as the server asks it: by sampling parameters and value tables.

    Args:
        members: whether it has members and rewards of log p.
        flags: vLLM's, beside those of the settings.
    """

    def __init__(self, members: bool, flags: Sequence[str] = ()) -> None:
        asked = settings(members)
        args, _ = parse(asked, attach(asked), list(flags))
        worker_args.set_environment(args)
        register()  # vLLM has asked its plugins before, to parse the flags
        self._llm = LLM.from_engine_args(EngineArgs.from_cli_args(args))
        self._tables = {
            name: SharedTable(slots=16, columns=columns, length=2 * LENGTH)
            for name, columns in {**_COLUMNS, "token_stats": len(asked.token_stats)}.items()
        }
        self._statistics = asked.token_stats

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: object) -> None:
        for table in self._tables.values():
            table.close()

    @property
    def worker(self) -> Any:
        """vLLM's worker."""
        return self._llm.llm_engine.model_executor.driver_worker.worker

    def described(self) -> dict[str, Any]:
        """What runs: the model runner's module, the scheduler's kind, whether kernels are used."""
        core = self._llm.llm_engine.engine_core.engine_core
        return {
            "runner": type(self.worker.model_runner).__module__,
            "asynchronous": core.async_scheduling and isinstance(core.scheduler, AsyncScheduler),
            "kernels": "value_heads.kernels.fused" in sys.modules,
        }

    def run(self, kinds: Mapping[str, Kind], seed: int | None = None) -> dict[str, Any]:
        """Runs one request of each kind, all at once.

        Args:
            seed: of those at a temperature.
        """
        with self._requested(kinds, seed) as (tickets, outputs):
            read = self._read(kinds, tickets)
            return {
                name: _drawn(output.outputs[0]) | read[name]
                for name, output in zip(kinds, outputs, strict=True)
            }

    def dummy_batch(self, kinds: Mapping[str, Kind]) -> list[dict[str, Any]]:
        """What requests have in the tables before and after a dummy batch, which follows them.

        vLLM has a rank of data parallelism run one while others work. What it would write is handed
        over with the next step.
        """
        with self._requested(kinds) as (tickets, _):
            before = self._read(kinds, tickets)
            self.worker.execute_dummy_batch()
            self.run({"plain": Kind(length=8, steps=1)})
            return [before, self._read(kinds, tickets)]

    @contextmanager
    def one_token_a_step(self) -> Iterator[None]:
        """Computes prompts in chunks of one token meanwhile, in steps like those that draw."""
        config = self._llm.llm_engine.vllm_config.scheduler_config
        with patch.object(config, "long_prefill_token_threshold", 1):
            yield

    def forget(self) -> None:
        """Empties the prefix cache."""
        assert self._llm.reset_prefix_cache()

    def _columns(self, kind: Kind, field: str) -> list[int]:
        """The columns of a table that a request of this kind asks for."""
        if field == "token_stats":
            return [self._statistics.index(name) for name in kind.wants["token_stats_names"]]
        return list(range(_COLUMNS[field]))

    @contextmanager
    def _requested(
        self, kinds: Mapping[str, Kind], seed: int | None = None
    ) -> Iterator[tuple[list[dict[str, Ticket]], list[Any]]]:
        """The tickets and outputs of one request of each kind."""
        with ExitStack() as stack:
            tickets = [
                {name: stack.enter_context(self._tables[name].ticket()) for name in kind.tables}
                for kind in kinds.values()
            ]
            prompts = [
                TokensPrompt(prompt_token_ids=_prompt(kind.length)) for kind in kinds.values()
            ]
            asked = zip(kinds.values(), tickets, strict=True)
            params = [_params(kind, held, seed) for kind, held in asked]
            yield tickets, self._llm.generate(prompts, params, use_tqdm=False)

    def _read(
        self, kinds: Mapping[str, Kind], tickets: Sequence[Mapping[str, Ticket]]
    ) -> dict[str, Any]:
        """By kind, table, and tokens of the prefix."""
        return {
            name: {
                field: _found(self._tables[field], ticket, self._columns(kind, field))
                for field, ticket in held.items()
            }
            for (name, kind), held in zip(kinds.items(), tickets, strict=True)
        }


def _found(table: SharedTable, ticket: Ticket, columns: list[int]) -> dict[str, list[float]]:
    rows = {n: table.read(ticket, n) for n in range(1, LENGTH)}
    return {str(n): row[columns].tolist() for n, row in rows.items() if row is not None}


def _drawn(output: Any) -> dict[str, Any]:
    logprobs = [
        {str(token): one.logprob for token, one in step.items()} for step in output.logprobs
    ]
    return {"tokens": list(output.token_ids), "logprobs": logprobs}


def _params(kind: Kind, tickets: Mapping[str, Ticket], seed: int | None) -> SamplingParams:
    wants = {**kind.wants, **tickets}
    return SamplingParams(
        temperature=kind.temperature,
        seed=seed if kind.temperature else None,
        max_tokens=kind.steps,
        ignore_eos=True,
        logprobs=4,
        extra_args=WorkerRequest(**wants).added_to(None) if wants else None,
        skip_reading_prefix_cache=not kind.cached,
    )


def _prompt(length: int) -> Sequence[int]:
    """Token ids that no prompt of another length begins with."""
    rng = random.Random(length)
    return [rng.randrange(6, 1500) for _ in range(length)]
