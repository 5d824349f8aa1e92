"""LangChain's chat model, with the subclass of the example that keeps the report."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))

from langchain_chat import AlignedChatOpenAI
from langchain_openai import ChatOpenAI
from shared import ASKED, KEY, URL, policy, show

server = {"base_url": URL, "api_key": KEY, "max_tokens": 24}
unchanged = ChatOpenAI(model="demo", extra_body={"alignment": policy}, **server)
show("ChatOpenAI, whole", unchanged.invoke(ASKED).text, None)
show("ChatOpenAI, streamed", "".join(chunk.text for chunk in unchanged.stream(ASKED)), None)

model = AlignedChatOpenAI(model="demo", extra_body={"alignment": policy}, **server)
message = model.invoke(ASKED)
show("chat, whole", message.text, message.response_metadata["alignment"])
whole = None
for chunk in model.stream(ASKED):
    whole = chunk if whole is None else whole + chunk
show("chat, streamed", whole.text, whole.response_metadata["alignment"])
