"""Rollouts in memory, and in shards on disk."""

from pathlib import Path

import pytest
import torch

from value_heads import CachedRollouts, Rollouts, ShardWriter

WIDTH = 4


def response(prompt: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """States and tokens that tell where they belong: prompt in the hundreds, place in the ones."""
    numbers = 100.0 * prompt + torch.arange(length + 1)
    return numbers[:, None].expand(-1, WIDTH), 100 * prompt + torch.arange(1, length + 1)


LENGTHS = (3, 1, 2)


def padded() -> Rollouts:
    states = torch.full((3, 4, WIDTH), -1.0)
    tokens = torch.full((3, 3), -1)
    for row, length in enumerate(LENGTHS):
        states[row, : length + 1], tokens[row, :length] = response(row, length)
    return Rollouts.padded(
        states=states,
        tokens=tokens,
        mask=torch.arange(3) < torch.tensor(LENGTHS)[:, None],
        rewards=torch.tensor([[1.0], [2.0], [3.0]]),
        ended=torch.tensor([True, False, True]),
    )


class TestPlaces:
    def test_before_and_after_index_the_states_around_each_token(self) -> None:
        data = padded()
        assert data.tokens.tolist() == [1, 2, 3, 101, 201, 202]
        assert data.states[data.after, 0].tolist() == data.tokens.tolist()
        assert data.states[data.before, 0].tolist() == [0, 1, 2, 100, 200, 201]
        assert data.owner.tolist() == [0, 0, 0, 1, 2, 2]
        assert data.number.tolist() == [1, 2, 3, 1, 1, 2]
        assert data.tokens[data.last].tolist() == [3, 101, 202]

    def test_rows_exclude_cut_responses_if_asked(self) -> None:
        assert padded().rows(cut=True).tolist() == [0, 1, 2, 3, 4, 5]
        assert padded().rows(cut=False).tolist() == [0, 1, 2, 4, 5]

    def test_padding_and_unpadding_preserve_rollouts(self) -> None:
        data = padded()
        assert data.pad(data.tokens).tolist() == [[1, 2, 3], [101, 0, 0], [201, 202, 0]]
        assert torch.equal(data.pad(data.tokens)[data.mask], data.tokens)

    def test_split_keeps_responses_whole(self) -> None:
        first, rest = padded().split(0.67)
        assert first.tokens.tolist() == [1, 2, 3, 101]
        assert rest.states[:, 0].tolist() == [200, 201, 202]
        assert rest.prompts.tolist() == [2]
        with pytest.raises(ValueError, match="at least 2 responses, got 1"):
            rest.split(0.5)

    @pytest.mark.parametrize(
        ("change", "refusal"),
        [
            ({"tokens": torch.zeros(5, dtype=torch.long)}, r"tokens \[6\], got"),
            ({"states": torch.zeros(6, WIDTH)}, r"states \[9, d\]"),
            ({"rewards": torch.zeros(2, 1)}, "of 3 responses, got 2, 3 and 3"),
            ({"rewards": torch.zeros(3)}, r"rewards must be \[3, G\]"),
            ({"ended": torch.zeros(3)}, "ended bool, got .* torch.float32"),
            ({"lengths": torch.tensor([4, 0, 2])}, "at least 1, got 0"),
        ],
    )
    def test_rollouts_reject_mismatched_tensors(
        self, change: dict[str, torch.Tensor], refusal: str
    ) -> None:
        data = padded()
        names = ("states", "tokens", "lengths", "rewards", "ended", "prompts")
        with pytest.raises(ValueError, match=refusal):
            Rollouts(**{**{name: getattr(data, name) for name in names}, **change})


class TestOnDisk:
    REWARDS = torch.arange(7.0)[:, None]

    def write(self, folder: Path, stop: int = 7, shard_tokens: int = 5) -> ShardWriter:
        writer = ShardWriter(folder, "train", shard_tokens)
        for prompt in range(writer.written, stop):
            states, tokens = response(prompt, 1 + prompt % 3)
            writer.add(states, tokens, ended=prompt != 3, prompt=prompt)
        return writer

    def test_cached_rollouts_equal_the_written_ones(self, tmp_path: Path) -> None:
        self.write(tmp_path).flush()
        shards = CachedRollouts(tmp_path, "train", self.REWARDS)
        assert [len(shard.lengths) for shard in shards] == [3, 3, 1]
        assert [int(shard.lengths.sum()) for shard in shards[:2]] == [6, 6]
        for shard in shards:
            assert torch.equal(shard.states[shard.after, 0].long(), shard.tokens)
            assert shard.rewards[:, 0].tolist() == shard.prompts.tolist()
            assert shard.ended.tolist() == [prompt != 3 for prompt in shard.prompts.tolist()]

    def test_cut_responses_count_as_ended_if_asked(self, tmp_path: Path) -> None:
        self.write(tmp_path).flush()
        default, ended = (
            CachedRollouts(tmp_path, "train", self.REWARDS, cut_ends=cut_ends)
            for cut_ends in (False, True)
        )
        assert default.ended.tolist() == [True, True, True, False, True, True, True]
        assert ended.ended.all()
        assert all(shard.ended.all() for shard in ended)

    def test_writer_continues_after_the_last_complete_shard(self, tmp_path: Path) -> None:
        for name in ("once", "twice"):
            (tmp_path / name).mkdir()
        self.write(tmp_path / "once").flush()
        self.write(tmp_path / "twice", stop=5)  # two responses of the second shard are lost
        assert ShardWriter(tmp_path / "twice", "train").written == 3
        self.write(tmp_path / "twice").flush()
        once, twice = (
            {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
            for name in ("once", "twice")
        )
        assert once == twice

    def test_several_sets_share_a_folder(self, tmp_path: Path) -> None:
        self.write(tmp_path).flush()
        assert ShardWriter(tmp_path, "test").written == 0
        with pytest.raises(FileNotFoundError, match="has no shard of test"):
            CachedRollouts(tmp_path, "test", self.REWARDS)

    def test_cached_rollouts_reject_another_number_of_rewards(self, tmp_path: Path) -> None:
        self.write(tmp_path).flush()
        with pytest.raises(ValueError, match=r"must be \[7, G\], got \[6, 1\]"):
            CachedRollouts(tmp_path, "train", self.REWARDS[:6])
