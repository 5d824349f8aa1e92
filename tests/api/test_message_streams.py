"""Errors in a stream of vLLM's Messages API, without a policy."""

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


async def test_error_in_a_plain_messages_stream_keeps_its_message() -> None:
    serving: Any = object.__new__(AnthropicServingMessages)
    serving._merge_inline_system = False
    serving.create_chat_completion = chat
    state = State({"anthropic_serving_messages": serving})
    await AlignmentEndpoints().init_state(SimpleNamespace(), state, Namespace())
    messages = [{"role": "user", "content": "Hello"}]
    request = AnthropicMessagesRequest(model="demo", messages=messages, max_tokens=8, stream=True)
    stream = await state.anthropic_serving_messages.create_messages(request, None)
    (event,) = [item async for item in stream]
    name, _, data = event.partition("\n")
    assert name == "event: error"
    content = json.loads(data.removeprefix("data: "))
    assert content["error"]["message"] == "it died"
