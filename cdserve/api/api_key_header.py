"""API keys of Anthropic's clients, which send them in a header of their own."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send


class Bearer:
    """Middleware that makes a bearer token of ``x-api-key``, all that vLLM reads.

    Args:
        app: what asks for the token.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Leaves a token that is there already."""
        if scope["type"] == "http":
            headers = MutableHeaders(scope=scope)
            if "x-api-key" in headers:
                headers.setdefault("authorization", f"Bearer {headers['x-api-key']}")
        await self._app(scope, receive, send)
