"""Requests with a policy, for every API: admission, vLLM's serving code, and the report."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.utils.api_utils import load_aware_call, with_cancellation
from vllm.exceptions import GenerationError, GracefulHTTPError

from cdserve.api.errors import from_vllm_error
from cdserve.api.keep_alive import keep_alive
from cdserve.api.keys import Keys
from cdserve.api.requests import AlignedRequestMixin
from cdserve.api.server import AlignmentServer
from cdserve.api.wire import AnswerWriter
from cdserve.engine.admission import Admission
from cdserve.engine.context import AlignmentContext
from cdserve.errors import PolicyError
from cdserve.policy import FIELD

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])
cancelled_on_disconnect: Callable[[_Decorated], _Decorated] = with_cancellation
_counted_as_load: Callable[[_Decorated], _Decorated] = load_aware_call


def server_view(raw_request: Request) -> AlignmentServer:
    """The view of the server for the caller's API key."""
    keys: Keys = raw_request.app.state.args.cdserve
    return keys.view(raw_request.headers.get("authorization"))


async def check_draining(raw_request: Request) -> None:
    """Rejects a request while the server shuts down.

    Raises:
        OverloadError: the server is shutting down.
    """
    raw_request.app.state.engine_client.check_draining()


@cancelled_on_disconnect
@_counted_as_load
async def serve_aligned(
    request: AlignedRequestMixin,
    raw_request: Request,
    context: AlignmentContext,
    handler: Any,
    writer: AnswerWriter,
) -> Response:
    """Answers a request with a policy by vLLM's serving code, and adds the report.

    Args:
        request: the resolved request.
        raw_request: the HTTP request.
        context: the request's policy.
        handler: vLLM's serving method for the class of the request.
        writer: adds the report to the answer.

    Raises:
        PolicyError: the request has more candidates than the server ever admits.
        OverloadError: the server has no room for the candidates now.
    """
    with ExitStack() as resources:
        admission = raw_request.app.state.engine_client.admission
        resources.enter_context(_admit(admission, request, context))
        try:
            answer = await handler(request, raw_request)
        except (GenerationError, GracefulHTTPError) as error:
            answer = create_error_response(error)
        if isinstance(answer, ErrorResponse):
            return from_vllm_error(answer, begun=bool(context.prompts))
        if not isinstance(answer, AsyncGenerator):
            return JSONResponse(writer.body(answer))
        interval = raw_request.app.state.args.sse_keep_alive_interval
        events = keep_alive(
            writer.events(answer), float(interval) or request.server.settings.keep_alive
        )
        return _Stream(events, resources.pop_all())


def _admit(
    admission: Admission, request: AlignedRequestMixin, context: AlignmentContext
) -> AbstractContextManager[None]:
    """Reserves room for the candidates of a request until it ends."""
    candidates = context.policy.concurrent * request.choice_count
    if candidates > admission.capacity:
        field = next((name for name, count in request.choice_counts.items() if count > 1), FIELD)
        raise PolicyError(
            field,
            f"asks for {candidates} candidates; this server accepts up to {admission.capacity}",
            reason="limit",
        )
    return admission.admit(candidates, request.server.key, request.server.max_candidates)


class _Stream(StreamingResponse):
    """Streaming response that releases its resources when it ends, even before it has begun."""

    def __init__(self, events: AsyncGenerator[str, None], resources: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._resources:
            await super().__call__(scope, receive, send)
