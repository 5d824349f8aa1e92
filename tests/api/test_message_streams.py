"""What vLLM's Messages API says of a chat stream that breaks off, without a policy too."""

import json
from argparse import Namespace
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

from starlette.datastructures import State
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

from cdserve.api.endpoints import AlignmentEndpoints

ERROR = {"message": "it died", "type": "InternalServerError", "param": None, "code": 500}


async def chat(request: Any, raw_request: Any) -> AsyncGenerator[str, None]:
    async def events() -> AsyncGenerator[str, None]:
        yield f"data: {json.dumps({'error': ERROR})}\n\n"
        yield "data: [DONE]\n\n"

    return events()


async def test_the_error_of_a_plain_stream_is_told_as_it_is() -> None:
    serving: Any = object.__new__(AnthropicServingMessages)
    serving._merge_inline_system = False
    serving.create_chat_completion = chat
    state = State({"anthropic_serving_messages": serving})
    await AlignmentEndpoints().init_state(SimpleNamespace(), state, Namespace())
    messages = [{"role": "user", "content": "Hello"}]
    request = AnthropicMessagesRequest(model="demo", messages=messages, max_tokens=8, stream=True)
    stream = await state.anthropic_serving_messages.create_messages(request, None)
    (told,) = [event async for event in stream]
    name, _, data = told.partition("\n")
    assert name == "event: error"
    said = json.loads(data.removeprefix("data: "))
    assert said["error"]["message"] == "it died"
