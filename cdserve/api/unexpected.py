"""Exceptions that no handler is registered for: told by their class, logged under an id."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdserve.api.errors import answer
from cdserve.failures import log_failure


class Unexpected:
    """Middleware that answers an exception nobody handles with a 500 without its text.

    Args:
        app: what handles those that were expected.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises it on where the answer has begun: no other can be sent."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception as error:
            if begun:
                raise
            details = scope["app"].state.args.cdserve.everybody.settings.error_details
            metadata = scope.get("state", {}).get("request_metadata")
            request_id = getattr(metadata, "request_id", "")
            message = log_failure("the request", error, details, request_id)
            await answer(message, "InternalServerError", 500)(scope, receive, send)
