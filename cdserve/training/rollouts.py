"""Responses of the base model, sampled by vLLM and written to disk in waves."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.llm_engine import LLMEngine

from cdserve.engine.vllm import (
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
    check_version,
    set_cpu_defaults,
    tokens_input,
)
from cdserve.errors import ConfigError
from cdserve.worker.parent import ENDS_WITH_PARENT

WAVE = 1024
"""Approximate number of responses per file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A response.

    Attributes:
        prompt: index of the prompt, from 0.
        prompt_ids: token ids of the prompt.
        tokens: token ids of the response, including the end token if it was sampled.
        text: text of the response without special tokens, as rewards receive it.
        ended: whether the response ended by itself; False if ``max_tokens`` cut it.
    """

    prompt: int
    prompt_ids: list[int]
    tokens: list[int]
    text: str
    ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSampling:
    """Sampling parameters; the model's own generation config is ignored.

    Attributes:
        max_tokens: maximum length of a response.
        temperature: sampling temperature.
        per_prompt: responses per prompt.
        seed: seed from which the seed of each response is hashed. It fixes a response up to
            rounding, which depends on the other requests in the batch.
    """

    max_tokens: int
    temperature: float
    per_prompt: int
    seed: int


class Sampler:
    """Samples responses; a context manager that shuts the engine and its process down.

    The engine starts with the first missing response and is shared by all sets.

    Args:
        model: folder of the base model, or its name on the Hub.
        flags: vLLM's flags.
        sampling: sampling parameters.
    """

    def __init__(self, model: str, flags: Sequence[str], sampling: RolloutSampling) -> None:
        self._model = model
        self._flags = flags
        self._sampling = sampling
        self._engine: Any = None

    def __enter__(self) -> "Sampler":
        return self

    def __exit__(self, *_: object) -> None:
        if self._engine is not None:
            self._engine.renderer.shutdown()
            self._engine.engine_core.shutdown()
            self._engine = None

    def draw(
        self, prompts: Sequence[tuple[int, list[int]]], folder: Path, name: str, wave: int = WAVE
    ) -> None:
        """Samples the missing responses and writes them to ``{name}-rollouts-*.jsonl``.

        Only complete files appear, so an interrupted run resumes with the missing files.

        Args:
            prompts: index and token ids of each prompt.
            folder: folder of the files; must exist.
            name: name of the set of responses.
            wave: responses per file, rounded down to whole prompts; the same in every run.

        Raises:
            ConfigError: a prompt leaves no room for ``max_tokens``; nothing is sampled.
        """
        size = max(1, wave // self._sampling.per_prompt)
        waves = {
            folder / f"{name}-rollouts-{start // size:05d}.jsonl": prompts[start : start + size]
            for start in range(0, len(prompts), size)
        }
        missing = {path: part for path, part in waves.items() if not path.exists()}
        if not missing:
            return
        self._engine = self._engine or _start(self._model, self._flags)
        self._check_lengths(prompts)
        total = len(prompts) * self._sampling.per_prompt
        remaining = sum(map(len, missing.values())) * self._sampling.per_prompt
        with tqdm(
            total=total, initial=total - remaining, desc=f"{name}: responses", unit="response"
        ) as bar:
            self._draw(missing, bar)

    def _check_lengths(self, prompts: Iterable[tuple[int, list[int]]]) -> None:
        limit = self._engine.model_config.max_model_len
        max_tokens = self._sampling.max_tokens
        for number, ids in prompts:
            if len(ids) + max_tokens > limit:
                raise ConfigError(
                    f"prompt {number + 1} has {len(ids)} tokens and --max-tokens is {max_tokens}; "
                    f"their sum must be at most {limit}, vLLM's --max-model-len"
                )

    def _draw(
        self, waves: Mapping[Path, Sequence[tuple[int, list[int]]]], bar: "tqdm[Any]"
    ) -> None:
        requests = (
            _Request(wave, place, prompt, ids, response)
            for wave, prompts in waves.items()
            for place, (prompt, ids) in enumerate(prompts)
            for response in range(self._sampling.per_prompt)
        )
        drawn: defaultdict[Path, dict[tuple[int, int], Rollout]] = defaultdict(dict)
        for request, rollout in self._responses(requests):
            bar.update()
            done = drawn[request.wave]
            done[request.place, request.response] = rollout
            if len(done) == len(waves[request.wave]) * self._sampling.per_prompt:
                write(request.wave, [done[key] for key in sorted(done)])
                del drawn[request.wave]

    def _responses(self, requests: Iterator["_Request"]) -> Iterator[tuple["_Request", Rollout]]:
        """Yields responses as they end; requests of later waves keep the engine busy."""
        limit = 2 * self._engine.vllm_config.scheduler_config.max_num_seqs
        running: dict[str, _Request] = {}
        while True:
            for request in islice(requests, limit - len(running)):
                prompt, params = tokens_input(request.ids), self._params(request)
                self._engine.add_request(request.key, prompt, params)
                running[request.key] = request
            if not running:
                return
            for output in self._engine.step():
                if output.finished:
                    request = running.pop(output.request_id)
                    yield request, _rollout(request, output)

    def _params(self, request: "_Request") -> SamplingParams:
        key = f"{self._sampling.seed}/{request.key}".encode()
        return SamplingParams(
            max_tokens=self._sampling.max_tokens,
            temperature=self._sampling.temperature,
            seed=int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big"),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def read(folder: Path, name: str) -> Iterator[Rollout]:
    """Yields the responses of a set in the order of its prompts, reading line by line."""
    for path in sorted(folder.glob(f"{name}-rollouts-*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield Rollout(**json.loads(line))


def write(path: Path, rollouts: Iterable[Rollout]) -> None:
    """Writes a file of responses; it appears when it is complete."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for rollout in rollouts:
            file.write(json.dumps(asdict(rollout)) + "\n")
    partial.replace(path)


@dataclass(frozen=True, slots=True)
class _Request:
    """A response to sample."""

    wave: Path
    place: int
    """Position of the prompt in the wave."""
    prompt: int
    ids: list[int]
    response: int
    """Index among the prompt's responses, from 0."""

    @property
    def key(self) -> str:
        return f"{self.prompt}/{self.response}"


def _start(model: str, flags: Sequence[str]) -> LLMEngine:
    check_version()
    cli_env_setup()
    parser = FlexibleArgumentParser(prog="cdserve heads train", add_help=False)
    args = EngineArgs.add_cli_args(parser).parse_args([*flags, "--model", model])
    args.disable_log_stats = True  # log lines would break the progress bar
    set_cpu_defaults(args)
    os.environ[ENDS_WITH_PARENT] = "1"
    if current_platform.is_cpu() and args.enforce_eager:
        # Otherwise vLLM compiles sampling code at the first request, which takes a minute.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    return LLMEngine.from_engine_args(
        EngineArgs.from_cli_args(args),
        usage_context=UsageContext.LLM_CLASS,
        enable_multiprocessing=True,
    )


def _rollout(request: _Request, output: RequestOutput) -> Rollout:
    (completion,) = output.outputs
    return Rollout(
        prompt=request.prompt,
        prompt_ids=request.ids,
        tokens=list(completion.token_ids),
        text=completion.text,
        ended=completion.finish_reason == "stop",
    )
