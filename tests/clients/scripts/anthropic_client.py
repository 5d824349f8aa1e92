"""Anthropic's client: Messages."""

from anthropic import Anthropic
from shared import KEY, MESSAGES, SERVER, policy, show

client = Anthropic(base_url=SERVER, api_key=KEY)
message = client.messages.create(
    model="demo", messages=MESSAGES, max_tokens=24, extra_body={"alignment": policy}
)
show("Messages, whole", message.content[0].text, message.alignment)

with client.messages.stream(
    model="demo", messages=MESSAGES, max_tokens=24, extra_body={"alignment": policy}
) as stream:
    for event in stream:
        if event.type == "message_delta":
            report = event.alignment
    text = stream.get_final_text()
show("Messages, streamed", text, report)
