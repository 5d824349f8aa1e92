"""LiteLLM: completions, chat and Responses."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise fetched from the Internet

import litellm
from shared import ASKED, KEY, MESSAGES, URL, policy, show

server = {"api_base": URL, "api_key": KEY}
for stream in (False, True):
    of = "streamed" if stream else "whole"
    answer = litellm.completion(
        "openai/demo", MESSAGES, max_tokens=24, stream=stream, alignment=policy, **server
    )
    if stream:
        chunks = list(answer)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        report = next(chunk.alignment for chunk in chunks if hasattr(chunk, "alignment"))
        show(f"chat, {of}", text, report)
    else:
        show(f"chat, {of}", answer.choices[0].message.content, answer.alignment)

    answer = litellm.responses(
        model="openai/demo",
        input=ASKED,
        max_output_tokens=24,
        stream=stream,
        extra_body={"alignment": policy},
        **server,
    )
    response = list(answer)[-1].response if stream else answer
    show(f"Responses, {of}", response.output_text, response.alignment)
