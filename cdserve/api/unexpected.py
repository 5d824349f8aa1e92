"""Responses to exceptions without a handler: class and id to the client, the rest to the log."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdserve.api.errors import error_response
from cdserve.failures import log_failure


class UnexpectedErrorMiddleware:
    """Middleware that answers an unhandled exception with a 500 that omits its text.

    Args:
        app: the app with the handlers of expected exceptions.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request; re-raises the exception if the response has begun."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def send_noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except Exception as error:
            if begun:
                raise
            details = scope["app"].state.args.cdserve.default.settings.error_details
            metadata = scope.get("state", {}).get("request_metadata")
            request_id = getattr(metadata, "request_id", "")
            message = log_failure("the request", error, details, request_id)
            await error_response(message, "InternalServerError", 500)(scope, receive, send)
