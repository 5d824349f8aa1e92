"""API keys of Anthropic's clients, sent as ``x-api-key`` instead of as a bearer token."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send


class ApiKeyHeaderMiddleware:
    """Middleware that copies ``x-api-key`` to a bearer token, the only form that vLLM reads.

    Args:
        app: the app that authenticates by bearer token.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request; an ``authorization`` header takes precedence."""
        if scope["type"] == "http":
            headers = MutableHeaders(scope=scope)
            if "x-api-key" in headers:
                headers.setdefault("authorization", f"Bearer {headers['x-api-key']}")
        await self._app(scope, receive, send)
