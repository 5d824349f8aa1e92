"""Responses from the real engine: content, files and resumed sampling."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from cdserve.demo.tiny import MODEL_DIR, PROMPTS_PATH
from cdserve.errors import ConfigError
from cdserve.prompts import encode, read_prompts
from cdserve.training.rollouts import Rollout, RolloutSampling, Sampler, read

FLAGS = (
    *("--dtype", "float32", "--max-model-len", "512", "--enforce-eager"),
    *("--kv-cache-memory-bytes", "268435456", "--block-size", "32"),
)
SAMPLING = RolloutSampling(max_tokens=48, temperature=1.0, per_prompt=2, seed=5)
TOKENIZER = AutoTokenizer.from_pretrained(MODEL_DIR)
# Their numbers have gaps: a set is a part of the file's prompts.
PROMPTS = [(3 * i, ids) for i, ids in enumerate(encode(read_prompts(PROMPTS_PATH)[:12], TOKENIZER))]
WAVE = 9  # 4 prompts, so 3 waves


@pytest.fixture(scope="module")
def sampler() -> Iterator[Sampler]:
    with Sampler(str(MODEL_DIR), FLAGS, SAMPLING) as started:
        yield started


@pytest.fixture(scope="module")
def folder(sampler: Sampler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a complete set of responses."""
    drawn = tmp_path_factory.mktemp("drawn")
    sampler.draw(PROMPTS, drawn, "train", WAVE)
    return drawn


@pytest.fixture(scope="module")
def rollouts(folder: Path) -> list[Rollout]:
    return list(read(folder, "train"))


def test_responses_are_ordered_by_prompt(rollouts: list[Rollout]) -> None:
    prompts = [(one.prompt, one.prompt_ids) for one in rollouts]
    assert prompts == [prompt for prompt in PROMPTS for _ in range(2)]


def test_files_hold_whole_prompts(folder: Path) -> None:
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"train-rollouts-0000{i}.jsonl" for i in range(3)]
    assert [len(file.read_text().splitlines()) for file in files] == [8, 8, 8]


def test_responses_end_with_the_end_token_or_at_max_tokens(rollouts: list[Rollout]) -> None:
    ended = [one for one in rollouts if one.ended]
    cut = [one for one in rollouts if not one.ended]
    assert ended
    assert cut
    assert all(one.tokens[-1] == TOKENIZER.eos_token_id for one in ended)
    assert all(len(one.tokens) == SAMPLING.max_tokens for one in cut)
    assert not any(TOKENIZER.eos_token_id in one.tokens[:-1] for one in rollouts)


def test_text_contains_no_special_tokens(rollouts: list[Rollout]) -> None:
    for one in rollouts:
        assert one.text == TOKENIZER.decode(one.tokens, skip_special_tokens=True)


def test_responses_of_a_prompt_differ(rollouts: list[Rollout]) -> None:
    assert len({tuple(one.tokens) for one in rollouts}) > len(PROMPTS)


def test_equal_prompts_and_seed_give_equal_responses_in_another_set(
    sampler: Sampler, rollouts: list[Rollout], tmp_path: Path
) -> None:
    sampler.draw(PROMPTS, tmp_path, "test")
    assert list(read(tmp_path, "test")) == rollouts
    assert list(read(tmp_path, "train")) == []


def test_only_missing_files_are_sampled_again(sampler: Sampler, folder: Path) -> None:
    first, second, third = sorted(folder.iterdir())
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in (first, third)}
    text = second.read_bytes()
    second.unlink()
    sampler.draw(PROMPTS, folder, "train", WAVE)
    assert second.read_bytes() == text
    assert before == {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in before}
    assert len(list(folder.iterdir())) == 3


def test_complete_set_starts_no_engine(folder: Path) -> None:
    with Sampler("/nowhere", ("--no-such-flag",), SAMPLING) as sampler:
        sampler.draw(PROMPTS, folder, "train", WAVE)
        with pytest.raises(SystemExit):
            sampler.draw(PROMPTS, folder, "validation", WAVE)


def test_prompt_without_room_for_max_tokens_is_refused(sampler: Sampler, tmp_path: Path) -> None:
    fits, too_long = (0, [5] * 464), (7, [5] * 465)
    with pytest.raises(
        ConfigError, match=r"prompt 8 has 465 tokens and --max-tokens is 48; .* at most 512"
    ):
        sampler.draw([fits, too_long], tmp_path, "train")
    assert list(tmp_path.iterdir()) == []
    sampler.draw([fits], tmp_path, "train")
    assert len(list(read(tmp_path, "train"))) == 2
