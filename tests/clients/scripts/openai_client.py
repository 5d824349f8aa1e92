"""OpenAI's client: completions, chat and Responses."""

from openai import OpenAI
from shared import ASKED, KEY, MESSAGES, URL, policy, show

client = OpenAI(base_url=URL, api_key=KEY)
for stream in (False, True):
    of = "streamed" if stream else "whole"
    answer = client.completions.create(
        model="demo",
        prompt="Review:",
        max_tokens=24,
        stream=stream,
        extra_body={"alignment": policy},
    )
    chunks = list(answer) if stream else [answer]
    text = "".join(chunk.choices[0].text for chunk in chunks)
    show(f"completions, {of}", text, chunks[-1].alignment)

    answer = client.chat.completions.create(
        model="demo",
        messages=MESSAGES,
        max_tokens=24,
        stream=stream,
        extra_body={"alignment": policy},
    )
    if stream:
        chunks = list(answer)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        show(f"chat, {of}", text, chunks[-1].alignment)
    else:
        show(f"chat, {of}", answer.choices[0].message.content, answer.alignment)

    answer = client.responses.create(
        model="demo",
        input=ASKED,
        max_output_tokens=24,
        stream=stream,
        extra_body={"alignment": policy},
    )
    response = list(answer)[-1].response if stream else answer
    show(f"Responses, {of}", response.output_text, response.alignment)
