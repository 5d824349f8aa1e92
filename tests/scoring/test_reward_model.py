"""Reward models as rewards: what they are given to read, how they are batched, how they fail."""

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cdserve import config
from cdserve.errors import PolicyError, ScoringError
from cdserve.policy import Policy
from cdserve.scoring import ModelOutput, Objective, Response, build, objective
from cdserve.scoring.batching import Batcher
from cdserve.scoring.reward_model import Dialogue, Outputs, log_probability
from tests.waiting import turns


class Model:
    """Gives a response its length and, as a second output, minus that."""

    def __init__(self) -> None:
        self.batches: list[list[Dialogue]] = []

    async def __call__(self, dialogues: Sequence[Dialogue]) -> list[Outputs | BaseException]:
        self.batches.append(list(dialogues))
        await turns()
        return [self._outputs(dialogue) for dialogue in dialogues]

    def _outputs(self, dialogue: Dialogue) -> Outputs | BaseException:
        length = float(len(json.loads(dialogue.messages)[-1]["content"]))
        return ValueError("too long") if length > 10 else [(length, -length)]

    @property
    def messages(self) -> list[Any]:
        """The conversation it read last."""
        found: list[Any] = json.loads(self.batches[-1][-1].messages)
        return found


@pytest.fixture
def model() -> Model:
    return Model()


def rewards(model: Model, **settings: Any) -> Objective:
    """Two outputs of one model, as the rewards ``long`` and ``short``."""
    queue = Batcher(model, max_batch=32, max_wait=0.005)
    sent = {"kind": "reward_model", "model": "rm", **settings}
    made = build(
        {name: config.RewardModelReward.model_validate(sent) for name in ("long", "short")},
        models={
            "long": ModelOutput(queue=queue, column=0),
            "short": ModelOutput(queue=queue, column=1),
        },
    )
    return Objective({"long": 1.0, "short": 0.5}, made)


def response(text: str, messages: Sequence[dict[str, Any]] | None = None) -> Response:
    return Response(prompt="Q: ", text=text, tokens=3, finished=True, values={}, messages=messages)


async def test_rewards_of_one_model_share_its_outputs(model: Model) -> None:
    scores = await rewards(model).score([response("ab"), response("abcd"), response("ab")])
    assert [score.rewards for score in scores] == [
        {"long": 2.0, "short": -2.0},
        {"long": 4.0, "short": -4.0},
        {"long": 2.0, "short": -2.0},
    ]
    assert [score.total for score in scores] == [1.0, 2.0, 1.0]
    assert [len(batch) for batch in model.batches] == [2]  # both rewards, equal responses: once


@pytest.mark.parametrize(
    ("value", "expected"),
    [("log_prob", -math.log1p(math.exp(-4.0))), ("prob", 1.0 / (1.0 + math.exp(-4.0)))],
)
async def test_output_becomes_the_probability_of_its_label(
    model: Model, value: str, expected: float
) -> None:
    (score,) = await rewards(model, value=value).score([response("ab")])
    assert score.rewards["long"] == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=5), st.integers(0, 4), st.booleans())
def test_log_probability_is_that_of_torch_and_at_most_0(
    row: list[float], column: int, independent: bool
) -> None:
    column %= len(row)
    logits = torch.tensor(row, dtype=torch.float64)
    if independent or len(row) == 1:
        expected = torch.nn.functional.logsigmoid(logits[column])
    else:
        expected = torch.log_softmax(logits, 0)[column]
    log_p = log_probability(row, column, independent)
    assert log_p <= 0.0
    assert log_p == pytest.approx(expected.item(), rel=1e-9, abs=1e-9)


async def test_concurrent_requests_are_scored_in_one_batch(model: Model) -> None:
    made = rewards(model)
    await asyncio.gather(*(made.score([response(f"{i}"), response(f"{i}b")]) for i in range(8)))
    assert [len(batch) for batch in model.batches] == [16]


async def test_prompt_becomes_a_users_turn(model: Model) -> None:
    await rewards(model).score([response("yes")])
    assert model.batches[0][0].text == "Q: yes"
    assert model.messages == [
        {"role": "user", "content": "Q: "},
        {"role": "assistant", "content": "yes"},
    ]


async def test_chat_keeps_its_turns_with_content_as_one_text(model: Model) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    parts = [{"type": "text", "text": "What"}, {"type": "text", "text": "is it?"}]
    asked = [{"role": "user", "content": parts}, call, {"role": "tool", "content": "a cat"}]
    await rewards(model).score([response("A cat.", asked)])
    assert model.messages == [
        {"role": "user", "content": "What\nis it?"},
        call,
        {"role": "tool", "content": "a cat"},
        {"role": "assistant", "content": "A cat."},
    ]


async def test_response_continues_a_prefilled_assistants_turn(model: Model) -> None:
    asked = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A"}]
    await rewards(model).score([response(" cat", asked)])
    assert model.messages == [asked[0], {"role": "assistant", "content": "A cat"}]


async def test_picture_in_a_message_is_a_failure(model: Model) -> None:
    asked = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(ScoringError, match="reads text; a message has a part 'image_url'"):
        await rewards(model).score([response("A cat.", asked)])


async def test_failure_of_one_request_leaves_others_scored(model: Model) -> None:
    made = rewards(model)
    bad, good = await asyncio.gather(
        made.score([response("abc"), response("much too long")]),
        made.score([response("ab")]),
        return_exceptions=True,
    )
    assert isinstance(bad, ScoringError)
    assert "failed with ValueError" in str(bad)
    assert not isinstance(good, BaseException)
    assert good[0].rewards["long"] == 2.0
    assert len(model.batches) == 1


async def test_other_rewards_decide_if_a_failed_model_is_skipped(model: Model) -> None:
    (score,) = await rewards(model, on_failure="skip").score([response("much too long")])
    assert score.failed == ("long", "short")


async def test_reward_model_is_weighed_standardised(model: Model) -> None:
    made = rewards(model, standardise={"mean": 1.0, "std": 2.0})
    (score,) = await made.score([response("abc")])
    assert score.rewards == {"long": 3.0, "short": -3.0}
    assert score.total == (3.0 - 1.0) / 2.0 + 0.5 * (-3.0 - 1.0) / 2.0


class Prefixes(Policy):
    """A policy that scores prefixes."""

    method: str = "blockwise"
    scores_prefixes = True


def test_reward_model_scores_prefixes_only_if_declared(model: Model) -> None:
    policy = Prefixes(method="blockwise", rewards={"long": 1.0})
    with pytest.raises(PolicyError, match=r"rewards\.long scores finished responses only"):
        objective(policy, rewards(model).rewards, None)
    assert objective(policy, rewards(model, prefixes=True).rewards, None).reads_text


@pytest.mark.parametrize(
    "field",
    [
        *({"max_batch": 0}, {"max_wait": -1}, {"flags": {}}, {"value": "log"}),
        {"steps": {"marker": "#"}, "value": "prob"},
    ],
)
def test_invalid_reward_model_settings_are_rejected(model: Model, field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(field))):
        rewards(model, **field)
