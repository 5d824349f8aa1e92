"""Random requests of the soak test: routes, methods, and fields that change an answer's form."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ADAPTER = "polite"
"""Model id of the LoRA adapter, if served."""
CAPACITY = 256
"""Maximum number of running candidates of the server."""
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
BATCH = "/v1/chat/completions/batch"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
SCORE = "/v1/alignment/score"
_TILT = {"method": "tokenwise_cd", "beta": 0.3}
_MIX = {"method": "logit_mixing", "weights": {"base": 0.5, "tuned": 0.5}}
_POLICIES: list[dict[str, Any]] = [
    {"method": "none"},
    {"method": "best_of_n", "n": 4},
    {"method": "best_of_n", "n": 3, "rewards": {"sentiment": 1.0, "error": 0.01}},
    {"method": "best_of_n", "n": 3, "rewards": {"sentiment": 1.0, "skip": 0.01}},
    {"method": "best_of_n", "n": 3, "rewards": {"sentiment": 1.0, "base": 0.01}},
    {"method": "best_of_n", "n": 2, "report": "none"},
    {"method": "blockwise_cd", "k": 3, "m": 16},
    {"method": "blockwise_cd", "k": 2, "m": 8, "beam_width": 2, "report": "trace"},
    {"method": "blockwise_cd", "k": 3, "m": 16, "proposal": _TILT, "kl_budget": 2.0},
    {"method": "best_of_poisson", "mu": 2.0},
    {"method": "rejection", "eta": 1.0, "r_max": 3.0, "max_draws": 4},
    {"method": "cards", "m": 16, "r_star": 1.0, "max_draws": 4, "k": 2},
    {"method": "speculative_rejection", "n": 4, "m": 8},
    _TILT,
]
_REFUSED: list[dict[str, Any]] = [
    {"method": "best_of_n", "n": 65},
    {"method": "best_of_n", "n": 2, "rewards": {"unknown": 1.0}},
    {"method": "tokenwise_cd", "beta": 0.0},
]
_REWARDS = [
    {"sentiment": 1.0},
    {"sentiment": 1.0, "brevity": 0.1},
    {"sentiment": 1.0, "error": 0.01},
]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, with the expected answer.

    Attributes:
        route, body, headers: the request.
        policy: the body's; None for a plain request and for a scoring.
        answers: choices, or scores.
        logprobs, prompt_logprobs: whether they are in the answer.
        refused: whether it is wrong, so that it is to be refused.
    """

    route: str
    body: Mapping[str, Any]
    policy: Mapping[str, Any] | None
    answers: int
    headers: Mapping[str, str]
    logprobs: bool = False
    prompt_logprobs: bool = False
    refused: bool = False

    @property
    def may_fail(self) -> bool:
        """Whether the request names the reward whose failure fails the request."""
        return "error" in ((self.policy or self.body).get("rewards") or {})


class Requests:
    """Draws requests.

    Args:
        rng: random number generator.
        lora: whether an adapter is served. Then there are no members, and no log-probabilities
            of prompts are asked for: with LoRA, vLLM 0.32 dies of them in a step with others.
    """

    def __init__(self, rng: random.Random, *, lora: bool) -> None:
        self._rng = rng
        self._lora = lora
        self._models = ["demo", ADAPTER] if lora else ["demo"]
        self._policies = _POLICIES if lora else [*_POLICIES, _MIX]
        self._draw = {
            COMPLETIONS: self._completions,
            CHAT: self._chat,
            BATCH: self._batch,
            RESPONSES: self._responses,
            MESSAGES: self._messages,
            SCORE: self._score,
        }

    def draw(self, request_id: str | None = None) -> Asked:
        """A request of a random route, with the client's request id if given."""
        route = self._rng.choice(list(self._draw))
        headers = {} if request_id is None else {"x-request-id": request_id}
        body, found = self._draw[route]()
        named = route in (COMPLETIONS, CHAT, BATCH, RESPONSES)
        if request_id is not None and named and self._happens(0.5):
            body["request_id"] = request_id
        return Asked(route=route, body=body, headers=headers, **found)

    def first(self) -> list[Asked]:
        """One request per policy, to warm up: allocations of a first use are not growth."""
        fixed = {"model": "demo", "prompt": self._text(), "max_tokens": 16}
        return [
            Asked(COMPLETIONS, {**fixed, "alignment": policy}, policy, 1, {})
            for policy in self._policies
        ]

    def full(self) -> Asked:
        """A request that is admitted only if no other request holds candidates."""
        policy = {"method": "best_of_n", "n": CAPACITY // 4}
        body = {"model": "demo", "prompt": self._text(), "max_tokens": 4, "n": 4}
        return Asked(COMPLETIONS, {**body, "alignment": policy}, policy, 4, {})

    def _happens(self, share: float) -> bool:
        return self._rng.random() < share

    def _text(self) -> str:
        return f"Review: item {self._rng.randrange(1000)} (garden)."

    def _messages_of(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self._text()}]

    def _usual(self, length: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fields shared by all generating routes: of the body, and of the expected answer."""
        body = {"model": self._rng.choice(self._models), length: self._rng.randint(1, 40)}
        if self._happens(0.1):
            return body, {"policy": None, "answers": 1}
        refused = self._happens(0.02)
        policy = dict(self._rng.choice(_REFUSED if refused else self._policies))
        if policy["method"] != "none" and self._happens(0.25):
            policy["deadline_ms"] = self._rng.randint(1, 300)
        body["alignment"] = policy
        return body, {"policy": policy, "answers": 1, "refused": refused}

    def _streamed(self, body: dict[str, Any]) -> bool:
        """Sets whether the request streams, with usage in half of the cases."""
        body["stream"] = self._happens(0.5)
        if body["stream"] and self._happens(0.5):
            body["stream_options"] = {"include_usage": True}
        return bool(body["stream"])

    def _stops(self, body: dict[str, Any], field: str = "stop") -> None:
        if self._happens(0.2):
            body[field] = self._rng.choice([["."], [" the", "."], ["\n"]])

    def _completions(self) -> tuple[dict[str, Any], dict[str, Any]]:
        body, found = self._usual("max_tokens")
        streamed, prompts = self._streamed(body), self._rng.choice([1, 1, 1, 2, 3])
        body["prompt"] = [self._text() for _ in range(prompts)] if prompts > 1 else self._text()
        body["n"] = self._rng.choice([1, 1, 1, 2, 3])
        self._stops(body)
        if self._happens(0.3):
            body["logprobs"], found["logprobs"] = self._rng.randrange(4), True
        if self._happens(0.2) and not (self._lora and "logprobs" in body):
            body["echo"] = True
        if not (streamed or self._lora) and self._happens(0.1):
            body["prompt_logprobs"], found["prompt_logprobs"] = 1, True
        return body, {**found, "answers": prompts * body["n"]}

    def _chat(self) -> tuple[dict[str, Any], dict[str, Any]]:
        body, found = self._usual("max_tokens")
        streamed, body["messages"] = self._streamed(body), self._messages_of()
        body["n"] = self._rng.choice([1, 1, 1, 2, 3])
        self._stops(body)
        if self._happens(0.3):
            body |= {"logprobs": True, "top_logprobs": self._rng.randrange(4)}
            found["logprobs"] = True
        if not (streamed or self._lora) and self._happens(0.1):
            body["prompt_logprobs"], found["prompt_logprobs"] = 1, True
        return body, {**found, "answers": body["n"]}

    def _batch(self) -> tuple[dict[str, Any], dict[str, Any]]:
        body, found = self._usual("max_tokens")
        body["messages"] = [self._messages_of() for _ in range(self._rng.randint(1, 3))]
        self._stops(body)
        if self._happens(0.3):
            body |= {"logprobs": True, "top_logprobs": self._rng.randrange(4)}
            found["logprobs"] = True
        return body, {**found, "answers": len(body["messages"])}

    def _responses(self) -> tuple[dict[str, Any], dict[str, Any]]:
        body, found = self._usual("max_output_tokens")
        body |= {"input": self._text(), "stream": self._happens(0.5)}
        if self._happens(0.3):
            body |= {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
            found["logprobs"] = True
        return body, found

    def _messages(self) -> tuple[dict[str, Any], dict[str, Any]]:
        body, found = self._usual("max_tokens")
        body |= {"messages": self._messages_of(), "stream": self._happens(0.5)}
        self._stops(body, "stop_sequences")
        return body, found

    def _score(self) -> tuple[dict[str, Any], dict[str, Any]]:
        responses = [f" It works {word}." for word in self._rng.sample(["well", "badly", "on"], 2)]
        body = {
            **{"model": "demo", "prompt": self._rng.choice([self._text(), self._messages_of()])},
            **{"responses": responses, "rewards": self._rng.choice(_REWARDS)},
            "per_token": self._happens(0.3),
        }
        return body, {"policy": None, "answers": len(responses)}
