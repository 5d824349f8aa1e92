"""The routes: completions and chat with ``alignment``, discovery, scoring, models."""

import json
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, ExitStack, aclosing
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from vllm.entrypoints.openai.chat_completion import api_router as chat_router
from vllm.entrypoints.openai.completion import api_router as completion_router
from vllm.entrypoints.openai.models.api_router import show_available_models
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.utils.api_utils import (
    load_aware_call,
    validate_json_request,
    with_cancellation,
)
from vllm.entrypoints.serve.utils.sse_keep_alive import with_sse_keep_alive
from vllm.exceptions import GenerationError, GracefulHTTPError

from cdserve.api import answers
from cdserve.api.errors import of_vllm
from cdserve.api.keys import Keys
from cdserve.api.requests import AlignedChatCompletionRequest, AlignedCompletionRequest
from cdserve.api.scoring import ScoreRequest, score
from cdserve.api.server import AlignmentServer
from cdserve.engine.admission import Admission
from cdserve.engine.run import AlignmentRun
from cdserve.errors import PolicyError
from cdserve.policy import FIELD

router = APIRouter()
_json = [Depends(validate_json_request)]


@router.post("/v1/completions", dependencies=_json, responses=answers.COMPLETION)
async def create_completion(request: AlignedCompletionRequest, raw_request: Request) -> Response:
    """OpenAI completions, decoded under a policy where one is asked for."""
    model = request.model
    if (run := _resolve(request, raw_request)) is None:
        plain: Response = await completion_router.create_completion(request, raw_request)
        return plain
    handler = raw_request.app.state.openai_serving_completion.create_completion
    answer: Response = await _aligned(request, raw_request, run, handler, model)
    return answer


@router.post("/v1/chat/completions", dependencies=_json, responses=answers.CHAT_COMPLETION)
async def create_chat_completion(
    request: AlignedChatCompletionRequest, raw_request: Request
) -> Response:
    """OpenAI chat completions, decoded under a policy where one is asked for."""
    model = request.model
    if (run := _resolve(request, raw_request)) is None:
        plain: Response = await chat_router.create_chat_completion(request, raw_request)
        return plain
    handler = raw_request.app.state.openai_serving_chat.create_chat_completion
    answer: Response = await _aligned(request, raw_request, run, handler, model)
    return answer


@router.get("/v1/alignment", responses=answers.DESCRIPTION)
async def describe(raw_request: Request) -> JSONResponse:
    """What this server can do: methods, rewards, members, presets, limits."""
    return JSONResponse(_server(raw_request).describe())


@router.post("/v1/alignment/score", dependencies=_json, responses=answers.SCORE)
@with_cancellation  # type: ignore[untyped-decorator]
async def create_score(request: ScoreRequest, raw_request: Request) -> JSONResponse:
    """Scores given responses with this server's rewards."""
    return JSONResponse(await score(request, _server(raw_request), raw_request.app.state))


@router.get("/v1/models", responses=answers.MODELS)
async def list_models(raw_request: Request) -> JSONResponse:
    """The models, and each preset as a model whose parent is the base."""
    answer = await show_available_models(raw_request)
    models = json.loads(answer.body)
    server = _server(raw_request)
    base = next(m for m in models["data"] if m["id"] == server.settings.model_name)
    models["data"] += [
        {**base, "id": f"{base['id']}:{name}", "parent": base["id"]} for name in server.presets
    ]
    return JSONResponse(models)


def _resolve(request: Any, raw_request: Request) -> AlignmentRun | None:
    run: AlignmentRun | None = request.resolve(_server(raw_request))
    return run


@with_cancellation  # type: ignore[untyped-decorator]
@load_aware_call  # type: ignore[untyped-decorator]
async def _aligned(
    request: Any, raw_request: Request, run: AlignmentRun, handler: Any, model: str | None
) -> Response:
    """vLLM's serving code, and the report added to what it says.

    Args:
        handler: vLLM's, for the request's class.
        model: the id the client asked for, which may be a preset's.
    """
    server = _server(raw_request)
    choices = request.prompts * (request.n or 1)
    with ExitStack() as held:
        admission = raw_request.app.state.engine_client.admission
        held.enter_context(_room(admission, request, run.policy.width * choices, server))
        try:
            answer = await handler(request, raw_request)
        except (GenerationError, GracefulHTTPError) as error:
            answer = create_error_response(error)
        if isinstance(answer, ErrorResponse):
            return of_vllm(answer, begun=run.prompts > 0)
        if not isinstance(answer, AsyncGenerator):
            content = answer.model_dump()
            _annotate(content, run, model, last=True)
            return JSONResponse(content)
        interval = raw_request.app.state.args.sse_keep_alive_interval
        events = with_sse_keep_alive(
            _annotated(answer, run, model, choices),
            float(interval) or server.settings.keep_alive,
        )
        return _Stream(events, held.pop_all())


def _room(
    admission: Admission, request: Any, candidates: int, server: AlignmentServer
) -> AbstractContextManager[None]:
    """Room for a request's candidates, until it ends."""
    if candidates > admission.capacity:
        several = {"n": request.n or 1, "prompt": request.prompts}
        field = next((name for name, count in several.items() if count > 1), FIELD)
        raise PolicyError(
            f"{field} asks for {candidates} candidates at once in all; this server accepts up to "
            f"{admission.capacity}",
            field,
        )
    return admission.admit(candidates, server.key, server.max_candidates)


class _Stream(StreamingResponse):
    """A stream that holds what it needs until it ends, even if it never begins."""

    def __init__(self, events: AsyncGenerator[str, None], held: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


async def _annotated(
    events: AsyncGenerator[str, None], run: AlignmentRun, model: str | None, choices: int
) -> AsyncGenerator[str, None]:
    """The stream with the report on the last chunk that has choices.

    With a trace, decisions ride on the first chunk that has choices once they are made.
    """
    finished = told = 0
    async with aclosing(events):
        async for event in events:
            data = event.removeprefix("data: ").strip()
            if not data.startswith("{"):  # [DONE]
                yield event
                continue
            chunk = json.loads(data)
            ended = sum(1 for choice in chunk.get("choices", ()) if choice.get("finish_reason"))
            finished += ended
            if chunk.get("choices") and (made := run.traced(since=told)):
                told += len(made)
                chunk["alignment_decisions"] = made
            _annotate(chunk, run, model, last=ended > 0 and finished == choices)
            yield f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _annotate(content: dict[str, Any], run: AlignmentRun, model: str | None, *, last: bool) -> None:
    if model is not None and "model" in content:
        content["model"] = model
    report = run.report() if last else None
    if report is not None:
        content["alignment"] = report


def _server(raw_request: Request) -> AlignmentServer:
    keys: Keys = raw_request.app.state.args.cdserve
    return keys.server(raw_request.headers.get("authorization"))
