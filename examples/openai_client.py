"""OpenAI's client: plain, streamed block by block, by preset, and with an invalid policy.

OPENAI_BASE_URL is the server's URL (default: http://localhost:8000/v1), OPENAI_API_KEY its key.
"""

import os
from functools import partial

from openai import BadRequestError, OpenAI

BASE_URL = os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1")
MESSAGES = [{"role": "user", "content": 'Write a short review of the film "Second Summer".'}]


def main() -> None:
    """Sends requests to the demo."""
    client = OpenAI(base_url=BASE_URL, api_key=os.environ.get("OPENAI_API_KEY", "-"))
    ask = partial(
        client.chat.completions.create, messages=MESSAGES, max_tokens=120, temperature=0.8
    )

    plain = ask(model="demo")
    print("plain:", plain.choices[0].message.content)

    # OpenAI's API has no field `alignment`, so it goes into `extra_body`.
    policy = {"method": "blockwise_cd", "k": 4, "m": 32, "rewards": {"sentiment": 1.0}}
    stream = ask(model="demo", stream=True, extra_body={"alignment": policy})
    print("blockwise:", end=" ")
    report = None
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        report = getattr(chunk, "alignment", report)  # on the last chunk that has choices
    print(f"\n  score {report['score']:.2f}, KL at most {report['kl']['bound']:.2f} nats,", end=" ")
    print(f"{report['candidate_tokens']} tokens drawn")

    preset = ask(model="demo:best-of-8")
    print("best-of-8:", preset.choices[0].message.content)
    print(f"  score {preset.alignment['score']:.2f} of {preset.alignment['candidates']} candidates")

    try:
        wrong = {"method": "best_of_n", "n": 0}
        ask(model="demo", extra_body={"alignment": wrong})
    except BadRequestError as error:
        print(f"refused: {error.param}: {error.body['message']}")


if __name__ == "__main__":
    main()
