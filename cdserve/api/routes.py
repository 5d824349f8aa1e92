"""Routes for generation with ``alignment``, discovery, scoring and models."""

import copy
import json
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from vllm.entrypoints.anthropic import api_router as messages_router
from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest
from vllm.entrypoints.openai.chat_completion import api_router as chat_router
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion import api_router as completion_router
from vllm.entrypoints.openai.models.api_router import show_available_models
from vllm.entrypoints.openai.responses import api_router as responses_router
from vllm.entrypoints.openai.responses.utils import construct_input_messages
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from cdserve import __version__
from cdserve.api import answers
from cdserve.api.models import check_preset
from cdserve.api.requests import (
    AlignedBatchRequest,
    AlignedChatCompletionRequest,
    AlignedCompletionRequest,
    AlignedMessagesRequest,
    AlignedRequestMixin,
    AlignedResponsesRequest,
)
from cdserve.api.scoring import ScoreRequest, score
from cdserve.api.serving import cancelled_on_disconnect, check_draining, serve_aligned, server_view
from cdserve.api.streams import CHAT, COMPLETION, ChoiceEnds, Handler, with_final_chunk
from cdserve.api.wire import CompletionsWriter, MessagesWriter, ResponsesWriter
from cdserve.engine.context import AlignmentContext

router = APIRouter()
_JSON_CHECKS = [Depends(check_draining), Depends(validate_json_request)]


@router.post("/v1/completions", dependencies=_JSON_CHECKS, responses=answers.COMPLETION)
async def create_completion(request: AlignedCompletionRequest, raw_request: Request) -> Response:
    """OpenAI Completions API, with the field ``alignment``."""
    plain = completion_router.create_completion
    handler = raw_request.app.state.openai_serving_completion.create_completion
    return await _serve_completions(request, raw_request, plain, handler, COMPLETION)


@router.post("/v1/chat/completions", dependencies=_JSON_CHECKS, responses=answers.CHAT_COMPLETION)
async def create_chat_completion(
    request: AlignedChatCompletionRequest, raw_request: Request
) -> Response:
    """OpenAI Chat Completions API, with the field ``alignment``."""
    plain = chat_router.create_chat_completion
    handler = raw_request.app.state.openai_serving_chat.create_chat_completion
    return await _serve_completions(request, raw_request, plain, handler, CHAT)


@router.post("/v1/chat/completions/batch", dependencies=_JSON_CHECKS, responses=answers.BATCH)
async def create_batch(request: AlignedBatchRequest, raw_request: Request) -> Response:
    """Chat completions of several conversations in one request, with the field ``alignment``."""
    plain = chat_router.create_batch_chat_completion
    handler = raw_request.app.state.openai_serving_chat_batch.create_batch_chat_completion
    return await _serve_completions(request, raw_request, plain, handler, CHAT)


@router.post("/v1/responses", dependencies=_JSON_CHECKS, responses=answers.RESPONSE)
async def create_response(request: AlignedResponsesRequest, raw_request: Request) -> Response:
    """OpenAI Responses API, with the field ``alignment``."""
    model = request.model
    if (context := await _resolve(request, raw_request)) is None:
        plain: Response = await responses_router.create_responses(request, raw_request)
        return plain
    serving = raw_request.app.state.openai_serving_responses
    if context.objective.reads_text:
        context.conversations = _conversations(request, serving)
    handler = serving.create_responses
    return await serve_aligned(
        request, raw_request, context, handler, ResponsesWriter(context, model)
    )


@router.post("/v1/messages", dependencies=_JSON_CHECKS, responses=answers.MESSAGE)
async def create_message(request: AlignedMessagesRequest, raw_request: Request) -> Response:
    """Anthropic Messages API, with the field ``alignment``."""
    model = request.model
    if (context := await _resolve(request, raw_request)) is None:
        plain: Response = await messages_router.create_messages(request, raw_request)
        return plain
    serving = raw_request.app.state.anthropic_serving_messages
    handler = with_final_chunk(serving.create_chat_completion, context)

    async def create_chat_completion(
        chat_request: ChatCompletionRequest, raw_request: Request
    ) -> Any:
        return await handler(request.with_policy(chat_request), raw_request)

    # vLLM converts the request to a chat request, which must use the policy. The copy keeps the
    # replacement local to this request.
    serving = copy.copy(serving)
    serving.create_chat_completion = create_chat_completion
    return await serve_aligned(
        request, raw_request, context, serving.create_messages, MessagesWriter(context, model)
    )


@router.post("/v1/messages/count_tokens", dependencies=_JSON_CHECKS, responses=answers.COUNT)
async def count_tokens(request: AnthropicCountTokensRequest, raw_request: Request) -> Response:
    """Counts the prompt tokens of an Anthropic request; accepts model ids of presets."""
    server = server_view(raw_request)
    await check_preset(request, server, raw_request.app.state)
    if server.preset_of(request.model) is not None:
        request.model = server.settings.model_name
    counted: Response = await messages_router.count_tokens(request, raw_request)
    return counted


@router.get("/", include_in_schema=False)
async def root(raw_request: Request) -> Response:
    """Redirects to the playground; names the server and its version if the page is off."""
    if raw_request.app.state.args.cdserve.default.settings.playground:
        return RedirectResponse("playground")  # relative, so a proxy may add a path prefix
    return JSONResponse({"server": "cdserve", "version": __version__})


@router.get("/v1/alignment", responses=answers.DESCRIPTION)
async def describe(raw_request: Request) -> JSONResponse:
    """Lists the methods, rewards, members, presets and limits of this server."""
    return JSONResponse(server_view(raw_request).describe())


@router.post("/v1/alignment/score", dependencies=_JSON_CHECKS, responses=answers.SCORE)
@cancelled_on_disconnect
async def create_score(request: ScoreRequest, raw_request: Request) -> JSONResponse:
    """Scores given responses with this server's rewards."""
    client_id = raw_request.headers.get("x-request-id")
    server = server_view(raw_request)
    with raw_request.app.state.engine_client.scoring():
        return JSONResponse(await score(request, server, raw_request.app.state, client_id))


@router.get("/v1/models", responses=answers.MODELS)
async def list_models(raw_request: Request) -> JSONResponse:
    """Lists the models, and each preset as a model whose ``parent`` is the base model."""
    answer = await show_available_models(raw_request)
    models = json.loads(answer.body)
    server = server_view(raw_request)
    base = next(m for m in models["data"] if m["id"] == server.settings.model_name)
    models["data"] += [
        {**base, "id": f"{base['id']}:{name}", "parent": base["id"]} for name in server.presets
    ]
    return JSONResponse(models)


async def _resolve(request: AlignedRequestMixin, raw_request: Request) -> AlignmentContext | None:
    """Resolves the policy of a request; None for plain decoding."""
    server = server_view(raw_request)
    await check_preset(request, server, raw_request.app.state)
    return request.resolve(server)


async def _serve_completions(
    request: AlignedRequestMixin, raw_request: Request, plain: Handler, handler: Handler, kind: str
) -> Response:
    """Answers a request of the Completions or Chat Completions API.

    Args:
        request: the request.
        raw_request: the HTTP request.
        plain: vLLM's route, for a request without a policy.
        handler: vLLM's serving method, for a request with a policy.
        kind: ``object`` of the chunks of a stream.
    """
    model = request.model
    if (context := await _resolve(request, raw_request)) is None:
        answer: Response = await plain(request, raw_request)
        return answer
    writer = CompletionsWriter(context, model, ChoiceEnds(context, request, raw_request, kind))
    return await serve_aligned(request, raw_request, context, handler, writer)


def _conversations(request: AlignedResponsesRequest, serving: Any) -> list[Any]:
    """The chat messages of a request, with those of the response that it continues.

    Empty if vLLM stores the latter in gpt-oss's format; rewards then read the text of the prompt.
    """
    previous_id = request.previous_response_id
    if previous_id is not None and serving.use_harmony:
        return []
    previous = serving.response_store.get(previous_id)
    messages = construct_input_messages(
        request_instructions=request.instructions,
        request_input=request.input,
        prev_msg=serving.msg_store.get(previous_id),
        prev_response_output=None if previous is None else previous.output,
    )
    return [messages]
