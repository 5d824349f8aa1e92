"""Instructor: chat, with the answer as an object."""

from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel
from shared import KEY, MESSAGES, URL, policy, show


class Review(BaseModel):
    """What the answer has to be."""

    verdict: Literal["good", "bad"]


client = instructor.from_openai(OpenAI(base_url=URL, api_key=KEY), mode=instructor.Mode.JSON_SCHEMA)
# The demo's model was not trained on JSON: hot, it draws few of the spaces that JSON allows.
request = {"model": "demo", "messages": MESSAGES, "max_tokens": 900, "temperature": 2}
review, answer = client.create_with_completion(
    response_model=Review, extra_body={"alignment": policy}, **request
)
show("chat, whole", review.verdict, answer.alignment)
partial = client.create_partial(response_model=Review, extra_body={"alignment": policy}, **request)
show("chat, streamed", list(partial)[-1].verdict, None)
