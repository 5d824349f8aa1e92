"""Draws whose requests are still arriving in the engine.

The server sends the K candidates of a block one after the other, which takes a few milliseconds. An
engine that starts with the first of them runs one step more for every block: the decision waits for
the candidate that began last. So the requests of a draw begin in the same step.
"""

import time

from cdserve.worker.request import DrawPlace

WAIT = 0.02
"""Seconds after the first request of a draw at which the others are no longer awaited."""


class PendingDraws:
    """Draws whose last request has not arrived yet."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def add(self, place: DrawPlace) -> None:
        """Adds a request that has arrived.

        Only the first one of a draw starts the wait. On a full server the others get their slots
        one by one, and would wait again.
        """
        if place.preceding == place.size - 1:
            self._until.pop(place.draw, None)
        elif place.preceding == 0:
            now = time.monotonic()
            self._until = {draw: end for draw, end in self._until.items() if end > now}
            self._until[place.draw] = now + WAIT

    def __bool__(self) -> bool:
        """Whether some draw may be incomplete."""
        return bool(self._until)

    def incomplete(self, place: DrawPlace) -> bool:
        """Whether a request should wait for later ones of its draw."""
        return self._until.get(place.draw, 0.0) > time.monotonic()
