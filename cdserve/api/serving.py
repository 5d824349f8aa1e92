"""vLLM's serving code under a policy, whatever the API: room for the candidates, and the report."""

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.utils.api_utils import load_aware_call, with_cancellation
from vllm.entrypoints.serve.utils.sse_keep_alive import with_sse_keep_alive
from vllm.exceptions import GenerationError, GracefulHTTPError

from cdserve.api.errors import of_vllm
from cdserve.api.keys import Keys
from cdserve.api.requests import Aligned
from cdserve.api.server import AlignmentServer
from cdserve.api.wire import Wire
from cdserve.engine.admission import Admission
from cdserve.engine.context import AlignmentContext
from cdserve.errors import PolicyError
from cdserve.policy import FIELD


def server_of(raw_request: Request) -> AlignmentServer:
    """What the server is to whoever sends the request."""
    keys: Keys = raw_request.app.state.args.cdserve
    return keys.server(raw_request.headers.get("authorization"))


async def check_draining(raw_request: Request) -> None:
    """Refuses a request once the server is shutting down.

    Raises:
        OverloadError: it is.
    """
    raw_request.app.state.engine_client.check_draining()


async def aligned(
    request: Aligned, raw_request: Request, context: AlignmentContext, handler: Any, wire: Wire
) -> Response:
    """What ``handler``, vLLM's for the request's class, answers; with the report.

    Raises:
        PolicyError: it asks for more candidates than there is ever room for.
        OverloadError: there is no room for them now.
    """
    answer: Response = await _aligned(request, raw_request, context, handler, wire)
    return answer


@with_cancellation  # type: ignore[untyped-decorator]
@load_aware_call  # type: ignore[untyped-decorator]
async def _aligned(
    request: Aligned, raw_request: Request, context: AlignmentContext, handler: Any, wire: Wire
) -> Response:
    with ExitStack() as held:
        admission = raw_request.app.state.engine_client.admission
        held.enter_context(_room(admission, request, context))
        try:
            answer = await handler(request, raw_request)
        except (GenerationError, GracefulHTTPError) as error:
            answer = create_error_response(error)
        if isinstance(answer, ErrorResponse):
            return of_vllm(answer, begun=bool(context.prompts))
        if not isinstance(answer, AsyncGenerator):
            return JSONResponse(wire.whole(answer))
        interval = raw_request.app.state.args.sse_keep_alive_interval
        events = with_sse_keep_alive(
            wire.events(answer), float(interval) or request.server.settings.keep_alive
        )
        return _Stream(events, held.pop_all())


def _room(
    admission: Admission, request: Aligned, context: AlignmentContext
) -> AbstractContextManager[None]:
    """Room for a request's candidates, until it ends."""
    candidates = context.policy.width * request.choices
    if candidates > admission.capacity:
        field = next((name for name, count in request.counts.items() if count > 1), FIELD)
        raise PolicyError(
            field,
            f"asks for {candidates} candidates at once in all; this server accepts up to "
            f"{admission.capacity}",
        )
    return admission.admit(candidates, request.server.key, request.server.max_candidates)


class _Stream(StreamingResponse):
    """A stream that holds what it needs until it ends, even if it never begins."""

    def __init__(self, events: AsyncGenerator[str, None], held: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)
