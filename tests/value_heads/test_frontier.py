"""What best-of-n earns of two rewards, by hand: five responses to two prompts."""

import json
import statistics
from collections.abc import Sequence

import pytest
import torch

from tests.value_heads.kernels.cases import DEVICE, RUN
from value_heads import (
    HeadConfig,
    HeadReport,
    QHead,
    Rollouts,
    ValueHead,
    frontier,
    markdown,
)
from value_heads import measure as measured

REWARDS = [[4.0, 0.0], [2.8, 28.0], [0.0, 40.0], [2.0, 10.0], [1.0, 30.0]]
PROMPTS = [7, 7, 7, 3, 3]
SD = [statistics.pstdev(column) for column in zip(*REWARDS, strict=True)]
BY_SHARE = {
    1.0: (REWARDS[0], REWARDS[3]),
    0.75: (REWARDS[0], REWARDS[3]),
    0.5: (REWARDS[1], REWARDS[4]),
    0.25: (REWARDS[2], REWARDS[4]),
    0.0: (REWARDS[2], REWARDS[4]),
}
"""Of the first reward, and the responses whose a / SD[0] and b / SD[1] weigh most by it."""


def rollouts(
    rewards: Sequence[Sequence[float]], prompts: Sequence[int], ended: Sequence[bool] | None = None
) -> Rollouts:
    """Responses of one token; all their states are their rewards."""
    table = torch.tensor(rewards)
    return Rollouts(
        states=table.repeat_interleave(2, 0),
        tokens=torch.zeros(len(table), dtype=torch.int64),
        lengths=torch.ones(len(table), dtype=torch.int64),
        rewards=table,
        ended=torch.tensor(ended or [True] * len(table)),
        prompts=torch.tensor(prompts),
    ).to(DEVICE)


@torch.no_grad()
def reader(architecture: str = "linear", outputs: int = 2) -> ValueHead | QHead:
    """A head whose values are the state: exact, so that the choice is by the rewards themselves."""
    sizes: dict[str, int] = {}
    if architecture == "lowrank":
        sizes = {"rank": 3, "vocab_size": 4}
    config = HeadConfig(
        architecture=architecture,  # type: ignore[arg-type]
        rewards=tuple("abc"[:outputs]),
        hidden_size=outputs,
        shift=(1.0,) * outputs,
        scale=(2.0,) * outputs,
        base_model="any",
        **sizes,
    )
    head = QHead(config) if architecture == "lowrank" else ValueHead(config)
    layer = head.state if isinstance(head, QHead) else head.net
    layer.weight.copy_(torch.eye(outputs) / 2)
    layer.bias.fill_(-0.5)
    return head.to(DEVICE)


def weighed(shares: float) -> list[float]:
    """Expected: the mean of what is chosen."""
    return [statistics.fmean(column) for column in zip(*BY_SHARE[shares], strict=True)]


@pytest.fixture(params=[False, True] if RUN else [False])
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The references, and where they run the kernels."""
    monkeypatch.setattr(frontier, "runs_on", lambda device: request.param)
    return bool(request.param)


def check(report: HeadReport) -> None:
    found = report.frontier
    assert found is not None
    assert (found.prompts, found.responses) == (2, 2.5)
    assert found.chance == pytest.approx({"a": (6.8 / 3 + 1.5) / 2, "b": (68 / 3 + 20) / 2})
    assert [point.shares for point in found.points] == [
        {"a": share, "b": 1 - share} for share in BY_SHARE
    ]
    for point, (share, _) in zip(found.points, BY_SHARE.items(), strict=True):
        expected = {"a": share / SD[0], "b": (1 - share) / SD[1]}
        assert point.weights == pytest.approx(expected)
        assert list(point.earned.values()) == pytest.approx(weighed(share))


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("architecture", ["linear", "lowrank"])
def test_frontier_matches_values_worked_out_by_hand(architecture: str) -> None:
    check(measured(reader(architecture), [rollouts(REWARDS, PROMPTS)]))


@pytest.mark.usefixtures("fused")
def test_frontier_is_independent_of_shards_and_cut_responses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frontier, "_ROWS", 2)
    cut = rollouts([[99.0, 99.0]], [7], [False])
    shards = [rollouts(REWARDS[:1], PROMPTS[:1]), cut, rollouts(REWARDS[1:], PROMPTS[1:])]
    check(measured(reader(), shards))


@pytest.mark.usefixtures("fused")
def test_frontier_sums_come_from_the_serving_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    """With each response's weights, which no value of the report's stands in for."""
    given = []
    found = frontier.operations

    def operations(fused: bool) -> object:
        kernels = found(fused)

        class Spied:
            @staticmethod
            def score(*arguments: object) -> object:
                given.append(arguments[3])
                return kernels.score(*arguments)  # type: ignore[arg-type]

        return Spied

    monkeypatch.setattr(frontier, "operations", operations)
    check(measured(reader(), [rollouts(REWARDS, PROMPTS)]))
    expected = [[[share / SD[0], (1 - share) / SD[1]]] * len(REWARDS) for share in BY_SHARE]
    torch.testing.assert_close(torch.stack(given).cpu(), torch.tensor(expected))


def test_frontier_selects_by_values_and_reports_rewards() -> None:
    """What is chosen is by values, what is earned is of rewards."""
    head = reader()
    with torch.no_grad():
        head.net.weight[1].zero_()  # type: ignore[union-attr]
    found = measured(head, [rollouts(REWARDS, PROMPTS)]).frontier
    assert found is not None
    for point in found.points[:-1]:
        assert list(point.earned.values()) == pytest.approx(weighed(1.0))


def test_frontier_covers_every_pair_of_three_rewards() -> None:
    rewards = [[*row, row[0] * row[1]] for row in REWARDS]
    report = measured(reader(outputs=3), [rollouts(rewards, PROMPTS)])
    assert report.frontier is not None
    pairs = [tuple(point.shares) for point in report.frontier.points]
    assert pairs == [("a", "b")] * 5 + [("a", "c")] * 5 + [("b", "c")] * 5
    assert {tuple(point.earned) for point in report.frontier.points} == {("a", "b", "c")}
    assert markdown(report).count("| any of them | –") == 3


@pytest.mark.parametrize(
    ("rewards", "prompts"),
    [
        ([[4.0, 1.0], [2.0, 1.0]], [0, 0]),
        ([[4.0, 1.0], [2.0, 3.0]], [0, 1]),
    ],
)
def test_frontier_is_none_without_two_responses_to_a_prompt(
    rewards: list[list[float]], prompts: list[int]
) -> None:
    """Of one constant reward, and of prompts with one response each."""
    report = measured(reader(), [rollouts(rewards, prompts)])
    assert report.frontier is None
    assert "weight of" not in markdown(report)


def test_frontier_is_none_for_one_reward() -> None:
    one = measured(reader(outputs=1), [rollouts([row[:1] for row in REWARDS], PROMPTS)])
    assert one.frontier is None
    assert json.loads(one.to_json())["frontier"] is None
    assert "weight of" not in markdown(one)


def test_frontier_appears_in_the_model_card() -> None:
    report = measured(reader(), [rollouts(REWARDS, PROMPTS)])
    card = markdown(report)
    assert "of 2.5 responses to each of 2 prompts" in card
    assert "| shares | weight of a | weight of b | a earned | b earned |\n" in card
    assert "| any of them | – | – | 1.883 | 21.33 |\n" in card
    assert f"| 1 a | {1 / SD[0]:.4g} | 0 | 3 | 5 |\n" in card
    assert f"| 0.5 a + 0.5 b | {0.5 / SD[0]:.4g} | {0.5 / SD[1]:.4g} | 1.9 | 29 |\n" in card
    assert card.endswith(f"| 1 b | 0 | {1 / SD[1]:.4g} | 0.5 | 35 |\n")
