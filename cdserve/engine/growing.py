"""Engine requests that draw a response to its end, and are read block by block."""

import asyncio
import copy
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from cdserve.decoders import Candidate
from cdserve.engine.drafts import Draft
from cdserve.engine.vllm import CompletionOutput, RequestOutput
from cdserve.worker.request import WorkerRequest


@dataclass(slots=True, kw_only=True, eq=False)
class GrowingResponse:
    """An engine request that goes on past the blocks read from it.

    The decision about a block thus costs the engine no step and no new request. Tokens that the
    engine draws during the decision are lost if the response is given up.
    """

    asked: WorkerRequest
    tickets: ExitStack
    """Gives back the tickets of ``asked``."""
    last: Candidate | None
    """The block before the one under way; None at the beginning of the response."""
    taken: int = 0
    """Tokens of the blocks read so far."""
    text: str = ""
    """Text of the blocks read so far; empty where no text is read."""
    _task: asyncio.Task[CompletionOutput] = field(init=False)
    _path: tuple[float, int] = (0.0, 0)
    _draft: Draft | None = None
    _drawn: RequestOutput | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, task: asyncio.Task[CompletionOutput]) -> None:
        """Sets the task that runs the engine request; the task passes each output to ``add``."""
        self._task = task
        task.add_done_callback(lambda _: self._changed.set())

    def add(self, output: RequestOutput) -> None:
        """Adds an output of the engine request: the tokens since the one before."""
        if self._drawn is None:
            self._drawn = output
        else:
            self._drawn.add(output, aggregate=True)
        self._changed.set()
        self._show()

    def watch(self, draft: Draft | None) -> None:
        """Sets the draft of the block under way; None if the client watches none."""
        self._draft = draft
        self._show()

    def _show(self) -> None:
        if self._draft is None or self._drawn is None:
            return
        drawn = self._drawn.outputs[0]
        values = None if self.last is None else self.last.values
        text = drawn.text[len(self.text) :]
        self._draft.update(text, len(drawn.token_ids) - self.taken, values)

    async def following(self, length: int) -> CompletionOutput:
        """The output after the blocks read so far, once it has more than ``length`` tokens.

        If the engine request has ended, it may have fewer. Errors of the request are raised here.
        """
        while not self._task.done() and self._tokens <= self.taken + length:
            self._changed.clear()
            await self._changed.wait()
        ended = self._task.result() if self._task.done() else None
        drawn = ended if self._drawn is None else self._drawn.outputs[0]
        assert drawn is not None
        rest = copy.copy(drawn)
        rest.token_ids = drawn.token_ids[self.taken :]
        rest.logprobs = None if drawn.logprobs is None else drawn.logprobs[self.taken :]
        return rest

    @property
    def _tokens(self) -> int:
        return 0 if self._drawn is None else len(self._drawn.outputs[0].token_ids)

    def step(self, nats: float, unsteered: int) -> dict[str, Any]:
        """KL and unsteered tokens of a block, from those of the path up to its end."""
        before, self._path = self._path, (nats, unsteered)
        return {"kl": nats - before[0], "unsteered": unsteered - before[1]}

    def read(self, block: Candidate) -> None:
        """Notes a block as read."""
        self.last = block
        self.taken += len(block.token_ids)
        self.text += block.text

    def end(self) -> asyncio.Task[CompletionOutput]:
        """Ends the engine request, without waiting for its end; returns its task."""
        self.tickets.close()
        self._task.cancel()
        return self._task
