"""Q-heads: their values in one pass, their files, and the targets of CD-Q."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from value_heads import HeadConfig, QHead, ValueHead, cd_q
from value_heads.heads import POSITION_FEATURES, position_features

WIDTH, VOCABULARY = 8, 11
LM_HEAD = torch.randn(VOCABULARY + 5, WIDTH, generator=torch.Generator().manual_seed(3))


def config(architecture: str = "lowrank", outputs: int = 2, width: int = WIDTH) -> HeadConfig:
    return HeadConfig(
        architecture=architecture,  # type: ignore[arg-type]
        rewards=tuple("abc"[:outputs]),
        hidden_size=width,
        rank=4 if architecture == "lowrank" else None,
        vocab_size=VOCABULARY,
        shift=tuple(0.5 * i for i in range(outputs)),
        scale=tuple(1.0 + i for i in range(outputs)),
        base_model="tiny",
    )


def random_head(architecture: str) -> QHead:
    torch.manual_seed(0)
    head = QHead(config(architecture))
    torch.nn.init.normal_(head.factor.weight)
    return head


@pytest.mark.parametrize("architecture", ["lowrank", "tied"])
class TestBoth:
    def test_q_head_gives_values_of_all_tokens(self, architecture: str) -> None:
        head, hidden = random_head(architecture), torch.randn(5, WIDTH)
        values = head(hidden, LM_HEAD)
        assert (values.shape, values.dtype) == ((5, 2, VOCABULARY), torch.float32)
        u = (hidden @ head.factor.weight.T + head.factor.bias).view(5, 2, -1)
        tokens = head.tokens[1] if architecture == "lowrank" else LM_HEAD[:VOCABULARY]
        state = (hidden @ head.state.weight.T + head.state.bias)[:, 1, None]
        torch.testing.assert_close(values[:, 1], 0.5 + 2.0 * (state + u[:, 1] @ tokens.T))

    def test_q_of_token_equals_the_value_among_all_tokens(self, architecture: str) -> None:
        head, hidden = random_head(architecture), torch.randn(5, WIDTH)
        tokens = torch.tensor([0, 3, 10, 3, 7])
        expected = head(hidden, LM_HEAD)[torch.arange(5), :, tokens]
        torch.testing.assert_close(head.q_of_token(hidden, tokens, LM_HEAD), expected)

    def test_expected_value_sums_over_the_vocabulary(self, architecture: str) -> None:
        head, hidden = random_head(architecture), torch.randn(5, WIDTH)
        p = torch.randn(5, VOCABULARY).softmax(-1)
        expected = (head(hidden, LM_HEAD) * p[:, None]).sum(-1)
        torch.testing.assert_close(head.expected(hidden, p, LM_HEAD), expected)

    def test_fresh_q_head_gives_every_token_the_same_value(self, architecture: str) -> None:
        values = QHead(config(architecture))(torch.randn(3, WIDTH), LM_HEAD)
        torch.testing.assert_close(values, values[..., :1].expand_as(values))

    def test_reloaded_q_head_gives_the_same_values(self, architecture: str, tmp_path: Path) -> None:
        head, hidden = random_head(architecture), torch.randn(5, WIDTH)
        head.save_pretrained(tmp_path)
        assert torch.equal(QHead.from_pretrained(tmp_path)(hidden, LM_HEAD), head(hidden, LM_HEAD))
        assert "# Q-head: a, b" in (tmp_path / "README.md").read_text()
        with pytest.raises(ValueError, match="architecture of a Value head"):
            ValueHead.from_pretrained(tmp_path)


@pytest.mark.parametrize("lm_head", [None, LM_HEAD[: VOCABULARY - 1], LM_HEAD[:, :4]])
def test_tied_head_requires_the_lm_head(lm_head: torch.Tensor | None) -> None:
    with pytest.raises(ValueError, match=r"a tied head needs an LM head of \[11, 8\]"):
        QHead(config("tied")).matrix(lm_head)


@pytest.mark.parametrize(
    ("architecture", "field", "value"),
    [
        ("lowrank", "rank", None),
        ("lowrank", "vocab_size", None),
        ("tied", "rank", 4),
        ("tied", "mlp_width", 4),
        ("linear", "vocab_size", VOCABULARY),
    ],
)
def test_sizes_must_match_the_architecture(
    architecture: str, field: str, value: int | None
) -> None:
    sizes = {"rank": 4 if architecture == "lowrank" else None, "vocab_size": VOCABULARY}
    if architecture == "linear":
        sizes = {"rank": None, "vocab_size": None}
    with pytest.raises(ValueError, match=field):
        HeadConfig(
            architecture=architecture,  # type: ignore[arg-type]
            rewards=("a",),
            hidden_size=WIDTH,
            shift=(0.0,),
            scale=(1.0,),
            base_model="tiny",
            **{**sizes, field: value},
        )


class TestTargets:
    def test_cd_q_targets_are_rewards_at_ends_and_expectations_elsewhere(self) -> None:
        expected = torch.tensor([[0.1, 0.2], [0.3, 0.4]], requires_grad=True)
        rewards = torch.tensor([[5.0, 6.0], [7.0, 8.0]])
        targets = cd_q(expected, rewards, torch.tensor([False, True]))
        torch.testing.assert_close(targets, torch.tensor([[0.1, 0.2], [7.0, 8.0]]))
        assert not targets.requires_grad

    def test_cd_q_rejects_mismatched_shapes(self) -> None:
        with pytest.raises(ValueError, match="must be"):
            cd_q(torch.zeros(2, 1), torch.zeros(3, 1), torch.zeros(3, dtype=torch.bool))
        with pytest.raises(ValueError, match="bool"):
            cd_q(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2))


def test_q_head_with_positions_reads_their_features_next_to_the_state() -> None:
    head = QHead(replace(config(), position_limit=9))
    torch.nn.init.normal_(head.factor.weight)
    hidden, position = torch.randn(5, WIDTH), torch.tensor([0, 1, 5, 9, 12])
    wide = QHead(config(width=WIDTH + POSITION_FEATURES))
    wide.load_state_dict(head.state_dict())
    inputs = torch.cat([hidden, position_features(position, 9)], dim=-1)
    p, tokens = torch.randn(5, VOCABULARY).softmax(-1), torch.tensor([0, 3, 10, 3, 7])
    torch.testing.assert_close(head(hidden, None, position), wide(inputs))
    torch.testing.assert_close(head.factors(hidden, position), wide.factors(inputs))
    torch.testing.assert_close(head.expected(hidden, p, None, position), wide.expected(inputs, p))
    torch.testing.assert_close(
        head.q_of_token(hidden, tokens, None, position), wide.q_of_token(inputs, tokens)
    )
    with pytest.raises(ValueError, match="position is missing; a head with position_limit 9"):
        head(hidden)
