"""Pairs of responses: compared prefixes, fits by the Bradley-Terry loss, and reports."""

import math
from pathlib import Path

import pytest
import torch

from value_heads import (
    Base,
    CachedRollouts,
    FitOptions,
    Head,
    HeadConfig,
    PrefixPairs,
    QHead,
    Rollouts,
    ShardWriter,
    ValueHead,
    fit_pairs,
    measure_pairs,
    pair_markdown,
)

GOOD, BAD, END, WIDTH = 3, 4, 9, 6


def rollouts(*responses: list[int]) -> Rollouts:
    """Responses whose state after a prefix has the counts of its tokens 3 and 4."""
    states, tokens, lengths = [], [], []
    for response in responses:
        ids = torch.tensor(response)
        prefixes = torch.zeros(len(ids) + 1, WIDTH)
        prefixes[1:, 0] = (ids == GOOD).cumsum(0)
        prefixes[1:, 1] = (ids == BAD).cumsum(0)
        states.append(prefixes)
        tokens.append(ids)
        lengths.append(len(ids))
    count = len(responses)
    return Rollouts(
        states=torch.cat(states),
        tokens=torch.cat(tokens),
        lengths=torch.tensor(lengths),
        rewards=torch.zeros(count, 0),
        ended=torch.ones(count, dtype=torch.bool),
        prompts=torch.arange(count) // 2,
    )


def config(architecture: str = "linear", **fields: object) -> HeadConfig:
    return HeadConfig(
        **{
            "architecture": architecture,
            "rewards": ("preference",),
            "hidden_size": WIDTH,
            "shift": (0.0,),
            "scale": (1.0,),
            "base_model": "toy",
            **fields,
        }
    )


def preferences(count: int) -> Rollouts:
    """The response with more tokens 3 is chosen in three of four pairs."""
    pairs = []
    for i in range(count):
        pair = [[1 + i % 2, GOOD, END], [1 + i % 2, BAD, 5, END]]
        pairs += pair if i % 4 else pair[::-1]
    return rollouts(*pairs)


class TestPrefixes:
    def test_prefixes_of_equal_length_are_paired_from_the_first_difference(self) -> None:
        data = rollouts([1, 2, GOOD, END], [1, 2, BAD, 5, 6, END], [7, END], [8, END])
        pairs = PrefixPairs.from_rollouts(data)
        places = zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)
        # Tokens 3 and 4 of the first pair, both tokens of the second, the uneven whole responses.
        assert list(places) == [(2, 6), (3, 7), (10, 12), (11, 13), (3, 9)]
        assert pairs.whole.tolist() == [False, False, False, True, True]

    def test_equal_responses_have_no_pair(self) -> None:
        assert len(PrefixPairs.from_rollouts(rollouts([1, END], [1, END]))) == 0

    def test_odd_number_of_responses_is_rejected(self) -> None:
        with pytest.raises(ValueError, match="an even number of responses, got 1"):
            PrefixPairs.from_rollouts(rollouts([1]))

    def test_shards_keep_pairs_together(self, tmp_path: Path) -> None:
        writer = ShardWriter(tmp_path, "train", 3, group=2)
        for i in range(6):
            tokens = torch.tensor([i, i, i, END])
            writer.add(torch.zeros(5, WIDTH), tokens, ended=True, prompt=i // 2)
        assert writer.written == 0
        assert [shard.prompts.tolist() for shard in CachedRollouts(tmp_path, "train")] == [
            [0, 0],
            [1, 1],
            [2, 2],
        ]


class TestFit:
    OPTIONS = FitOptions(lr=0.05, batch=64, max_epochs=300, patience=300)

    @pytest.mark.parametrize(
        ("head", "base"),
        [
            (ValueHead(config()), None),
            (QHead(config("lowrank", rank=4, vocab_size=10)), None),
            (QHead(config("tied", vocab_size=10)), Base(lm_head=torch.eye(10, WIDTH))),
        ],
    )
    def test_difference_of_values_is_the_log_odds(self, head: Head, base: Base | None) -> None:
        data = preferences(32)
        fit_pairs(head, [data], [data], self.OPTIONS, base=base)
        lm_head = None if base is None else base.lm_head
        with torch.no_grad():
            good, bad = head.rollout_values(data, torch.tensor([8, 11]), lm_head)[:, 0].tolist()
        assert data.tokens[[8, 11]].tolist() == [GOOD, BAD]
        assert good - bad == pytest.approx(math.log(3), abs=0.05)
        report = measure_pairs(head, [data], base)
        assert (report.pairs, report.prefixes) == (32, 32 * 3)
        assert report.loss == pytest.approx(0.5623, abs=1e-3)  # entropy of 3/4, in nats
        assert report.at_end == 0.75
        assert [(at.number, at.pairs, at.accuracy) for at in report.by_number] == [(2, 32, 0.75)]

    def test_finished_checkpoint_gives_identical_weights(self, tmp_path: Path) -> None:
        data, path = preferences(8), tmp_path / "checkpoint"
        whole, parts = (ValueHead(config()) for _ in range(2))
        parts.load_state_dict(whole.state_dict())
        options = FitOptions(max_epochs=3)
        once = fit_pairs(whole, [data], [data], options, checkpoint=path)
        again = fit_pairs(parts, [data], [data], options, checkpoint=path)
        assert once == again
        assert torch.equal(whole.state_dict()["net.weight"], parts.state_dict()["net.weight"])

    @pytest.mark.parametrize(
        ("head", "options", "refusal"),
        [
            (ValueHead(config(output="sigmoid")), {}, "soft or a sigmoid"),
            (ValueHead(config(kind="soft", beta=1.0)), {}, "soft or a sigmoid"),
            (ValueHead(config()), {"clip": 1.0}, "clip is of the squared error"),
            (QHead(config("tied", vocab_size=10)), {}, "a tied head needs the base model's output"),
            (ValueHead(config("mahalanobis")), {}, "architecture of a head to fit"),
        ],
    )
    def test_unsuitable_head_or_option_is_rejected(
        self, head: Head, options: dict[str, float], refusal: str
    ) -> None:
        data = preferences(2)
        with pytest.raises(ValueError, match=refusal):
            fit_pairs(head, [data], [data], FitOptions(**options))

    def test_pairs_without_a_difference_are_rejected(self) -> None:
        head, same = ValueHead(config()), rollouts([1, END], [1, END])
        with pytest.raises(ValueError, match="no pair to train on has responses that differ"):
            fit_pairs(head, [same], [preferences(2)])
        with pytest.raises(ValueError, match="no held-out pair has responses that differ"):
            fit_pairs(head, [preferences(2)], [same])
        with pytest.raises(ValueError, match="no held-out pair has responses that differ"):
            measure_pairs(head, [same])


def test_report_counts_ties_one_half_and_is_rendered() -> None:
    head = ValueHead(config())
    with torch.no_grad():
        head.net.weight.zero_()
    report = measure_pairs(head, [preferences(4)])
    assert (report.at_end, report.loss) == (0.5, pytest.approx(math.log(2)))
    card = pair_markdown(report)
    assert "4 pairs of responses, 12 pairs of prefixes" in card
    assert "| tokens read | 2 | all |\n| --- | --- | --- |\n| accuracy | 0.50 | 0.50 |" in card
    assert "loss is 0.6931 nats; that of a constant is 0.6931" in card
