"""Outputs of reward models behind HTTP: vLLM, SGLang, or Text Embeddings Inference (TEI)."""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

from cdserve.errors import RewardFailure, safe_repr
from cdserve.observability.metrics import SCORER_BATCH_SIZE, SCORER_WAIT_SECONDS
from cdserve.scoring.batching import Batcher
from cdserve.scoring.endpoint import Endpoint, StatusFailure
from cdserve.scoring.judge import Ask, Judge, fill
from cdserve.scoring.reward import Response, Reward
from cdserve.scoring.reward_model import Dialogue, tokens

Label = int | str
"""Index of an output, or its label."""
Outputs = Mapping[Label, float]
"""All outputs of a model for one response."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages that end with the response, as JSON."""

    messages: str


Input = Conversation | str | tuple[str, str] | tuple[int, ...]
"""One response, as the server reads it: messages, a text, prompt and response, or token ids."""
Reader = Callable[[Sequence[Response]], Awaitable[Sequence[Input]]]

_REFUSED = (400, 413, 422)
"""Statuses of requests that are refused for one of their texts, which may be too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route of a server.

    Attributes:
        path: path of the route.
        fields: fields of every request.
        inputs: makes the fields that hold the inputs of a request.
        outputs: reads the outputs of each input from an answer. Raises LookupError, TypeError or
            ValueError if the answer has another form.
    """

    path: str
    fields: Mapping[str, Any]
    inputs: Callable[[Sequence[Any]], Mapping[str, Any]]
    outputs: Callable[[Any], list[Outputs]]


def route(server: str, name: str, model: str | None, *, activation: bool) -> Route:
    """The route of a server.

    Forms of requests and answers: vLLM 0.32 ``vllm/entrypoints/pooling/*/protocol.py``; SGLang
    ``docs/basic_usage/native_api.ipynb`` and ``EmbeddingReqInput`` of its ``io_struct.py``; TEI
    ``router/src/http/types.rs``.

    Args:
        server: ``vllm``, ``sglang`` or ``tei``.
        name: ``classify``, ``pooling`` or ``score``.
        model: model id at the server; None if requests name none.
        activation: whether outputs are probabilities.
    """
    fields: dict[str, Any] = {} if model is None else {"model": model}
    match server, name:
        case "vllm", "score":
            fields["use_activation"] = activation
            return Route(path="/score", fields=fields, inputs=_queries, outputs=_data("score"))
        case "vllm", _:
            fields["use_activation"] = activation
            outputs = _data("probs" if name == "classify" else "data")
            return Route(path=f"/{name}", fields=fields, inputs=_input, outputs=outputs)
        case "sglang", _:
            return Route(path="/classify", fields=fields, inputs=_text, outputs=_embeddings)
    fields = {"raw_scores": not activation, "truncate": False}
    return Route(path="/predict", fields=fields, inputs=_sequences, outputs=_predictions)


def _input(inputs: Sequence[Any]) -> dict[str, Any]:
    if isinstance(inputs[0], Conversation):  # vLLM takes one per request
        (conversation,) = inputs
        return {"messages": json.loads(conversation.messages)}
    return {"input": inputs}


def _queries(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {"queries": [prompt for prompt, _ in pairs], "documents": [text for _, text in pairs]}


def _text(inputs: Sequence[Any]) -> dict[str, Any]:
    return {"text" if isinstance(inputs[0], str) else "input_ids": inputs}


def _sequences(inputs: Sequence[str | tuple[str, str]]) -> dict[str, Any]:
    return {"inputs": [[each] if isinstance(each, str) else list(each) for each in inputs]}


def _data(key: str) -> Callable[[Any], list[Outputs]]:
    return lambda answer: [_numbered(each[key]) for each in answer["data"]]


def _embeddings(answer: Any) -> list[Outputs]:
    return [_numbered(each["embedding"]) for each in answer]


def _predictions(answer: Any) -> list[Outputs]:
    """Outputs by label; the server sorts them by score."""
    return [{str(each["label"]): _number(each["score"]) for each in every} for every in answer]


def _numbered(value: Any) -> Outputs:
    """Outputs by index; of outputs per token, those of the last token."""
    if not isinstance(value, list):
        return {0: _number(value)}
    if isinstance(value[-1], list):
        value = value[-1]
    return dict(enumerate(map(_number, value)))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


async def read_messages(responses: Sequence[Response]) -> list[Input]:
    """The conversation, for the server's own chat template."""
    return [Conversation(Dialogue.of(each, each.text).messages) for each in responses]


async def read_pairs(responses: Sequence[Response]) -> list[Input]:
    """Prompt and response; the prompt of a chat is the text of its messages."""
    pairs: list[Input] = []
    for response in responses:
        *prompt, last = json.loads(Dialogue.of(response, response.text).messages)
        texts = [message["content"] for message in prompt if message.get("content")]
        pairs.append(("\n\n".join(texts), last["content"]))
    return pairs


def template_reader(template: str) -> Reader:
    """A text, by a template with the placeholders ``{prompt}`` and ``{response}``."""

    async def read(responses: Sequence[Response]) -> list[Input]:
        return [
            fill(template, prompt=response.prompt, response=response.text) for response in responses
        ]

    return read


def token_reader(tokenizer: Any) -> Reader:
    """The token ids that ``reward_model`` reads: by the chat template, or of the plain text."""
    thread = ThreadPoolExecutor(1, "http-reward-tokenizer")  # tokenizers are not thread-safe

    def token_ids(responses: Sequence[Response]) -> list[Input]:
        return [tuple(tokens(tokenizer, Dialogue.of(each, each.text))) for each in responses]

    async def read(responses: Sequence[Response]) -> list[Input]:
        return await asyncio.get_running_loop().run_in_executor(thread, token_ids, responses)

    return read


class HttpModel:
    """A reward model behind HTTP, with a queue that rewards by different outputs share.

    Args:
        name: first reward that uses the model; label of its metrics.
        endpoint: the server.
        route: its route.
        read: reads responses as inputs of the route.
        max_batch: most responses in a request; 1 if the route takes one conversation.
        max_wait: seconds that a request waits for more responses.
        concurrency: requests at the same time.
    """

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        route: Route,
        read: Reader,
        *,
        max_batch: int,
        max_wait: float,
        concurrency: int,
    ) -> None:
        self._endpoint = endpoint
        self._route = route
        self._read = read
        self._batch_size = SCORER_BATCH_SIZE.labels(name)
        self._queue: Batcher[Input, Outputs] = Batcher(
            self._scores,
            max_batch=max_batch,
            max_wait=max_wait,
            concurrency=concurrency,
            on_wait=SCORER_WAIT_SECONDS.labels(name).observe,
        )

    async def outputs(self, responses: Sequence[Response]) -> list[Outputs]:
        """All outputs of the model for each response.

        Raises:
            RewardFailure: the server fails, or its answer has another form.
        """
        return await self._queue.score(await self._read(responses))

    async def _scores(self, inputs: Sequence[Input]) -> list[Outputs | BaseException]:
        """Outputs of each input; a refused request is halved until the refused input is alone."""
        try:
            return [*await self._request(inputs)]
        except StatusFailure as failure:
            if failure.status not in _REFUSED:
                raise
            if len(inputs) == 1:
                return [failure]
        half = len(inputs) // 2
        return [*await self._scores(inputs[:half]), *await self._scores(inputs[half:])]

    async def _request(self, inputs: Sequence[Input]) -> list[Outputs]:
        self._batch_size.observe(len(inputs))
        path = self._route.path
        answer = await self._endpoint.post(
            path, {**self._route.fields, **self._route.inputs(inputs)}
        )
        try:
            outputs = self._route.outputs(answer)
        except (LookupError, OverflowError, TypeError, ValueError) as error:
            form = f"gave an answer that is not of the form of {path}"
            raise self._endpoint.failure(form, path, json.dumps(answer)) from error
        if len(outputs) != len(inputs):
            number = f"gave outputs for {len(outputs)} responses; {len(inputs)} were sent"
            raise self._endpoint.failure(number, path, json.dumps(answer))
        return outputs


class HttpOutput(Reward):
    """One output of a reward model behind HTTP.

    Args:
        model: the model.
        output: index or label of the output; None for the only one.
        prefixes: whether the operator uses the outputs for unfinished responses too.
    """

    kind: ClassVar[str] = "http"
    reads_text = True

    def __init__(self, model: HttpModel, output: Label | None, *, prefixes: bool) -> None:
        self._model = model
        self._output = output
        self.prefixes = prefixes

    async def score(self, responses: Sequence[Response]) -> list[float]:
        return [self._chosen(outputs) for outputs in await self._model.outputs(responses)]

    def _chosen(self, outputs: Outputs) -> float:
        output = self._output
        if output is None and len(outputs) == 1:
            return next(iter(outputs.values()))
        if output is None or output not in outputs:
            problem = "is not set" if output is None else f"is {safe_repr(output)}"
            raise RewardFailure(
                f"failed: its output {problem}; the model has {safe_repr(list(outputs))}"
            )
        return outputs[output]


class ChatNumber(Judge):
    """The last number in a chat model's answer, of any size: a judge without a scale.

    Args:
        ask: sends a question.
        template: the question, with the placeholders ``{prompt}`` and ``{response}``.
        concurrency: questions at the same time, over all requests.
    """

    kind: ClassVar[str] = "http"

    def __init__(self, ask: Ask, template: str, concurrency: int) -> None:
        super().__init__(ask, template, -math.inf, math.inf, concurrency)
