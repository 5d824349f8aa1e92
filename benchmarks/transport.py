"""How values may reach the server from vLLM's worker, and what each way costs.

On one engine with 64 sequences decoding: the time of one read out of shared memory, the time of one
``collective_rpc`` (which waits for the step in progress), and the tokens per second that remain
when every row carries logprobs, the in-band way, in alternating rounds.

    python benchmarks/transport.py
"""

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable

import numpy as np
from vllm import AsyncEngineArgs, SamplingParams
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from cdserve.demo import MODEL_DIR
from cdserve.shared_table import SharedTable, TableView

SEQUENCES, TOKENS, ROUNDS, CALLS = 64, 128, 7, 40


async def decode(engine: AsyncLLM, logprobs: int | None) -> float:
    """Tokens per second of 64 sequences."""
    start = time.perf_counter()
    await asyncio.gather(*(one(engine, logprobs, i) for i in range(SEQUENCES)))
    return SEQUENCES * TOKENS / (time.perf_counter() - start)


async def one(engine: AsyncLLM, logprobs: int | None, i: int) -> None:
    params = SamplingParams(
        max_tokens=TOKENS,
        ignore_eos=True,
        detokenize=False,
        logprobs=logprobs,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    prompt = tokens_input([100 + i, 200, 300])
    async for _ in engine.generate(prompt, params, f"{time.monotonic_ns()}-{i}"):
        pass


async def timed_under_load(engine: AsyncLLM, call: Callable[[], Awaitable[object]]) -> float:
    """Median milliseconds of ``call`` while the engine decodes."""
    load = asyncio.create_task(decode(engine, None))
    await asyncio.sleep(0.3)
    times: list[float] = []
    while not load.done() and len(times) < CALLS:
        start = time.perf_counter()
        await call()
        times.append((time.perf_counter() - start) * 1e3)
        await asyncio.sleep(0.005)
    await load
    return statistics.median(times)


def shared_memory() -> Callable[[], Awaitable[object]]:
    table = SharedTable(slots=65536, length=4, columns=1)
    ticket = table.acquire()
    row = np.array([ticket.offset + 33 % 4])
    number, length = np.array([ticket.number]), np.array([33])
    TableView.open(table.path, 1).write(row, number, length, np.ones((1, 1), np.float32))
    table.close()

    async def read() -> object:
        value = table.read(ticket, 33)
        assert value is not None
        return value

    return read


async def measure() -> dict[str, float]:
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(MODEL_DIR),
            dtype="float32",
            enforce_eager=True,
            block_size=32,
            max_model_len=2048,
            kv_cache_memory_bytes=512 << 20,
        )
    )
    await decode(engine, None)
    rates = [(await decode(engine, None), await decode(engine, 1)) for _ in range(ROUNDS)]
    result = {
        "shared_memory_ms": await timed_under_load(engine, shared_memory()),
        "collective_rpc_ms": await timed_under_load(
            engine, lambda: engine.collective_rpc("check_health")
        ),
        "in_band_throughput_ratio": statistics.median(b / a for a, b in rates),
    }
    engine.shutdown()
    return result


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure()), indent=2))
