"""Members are checked before the engine starts."""

import json
import shutil
from pathlib import Path

import pytest

from cdserve.config import Settings
from cdserve.demo.tiny import MODEL_DIR, TUNED_DIR
from cdserve.errors import ConfigError
from cdserve.launch.members import check_tokenizers


def settings(member: Path) -> Settings:
    return Settings(model=str(MODEL_DIR), members={"tuned": str(member)})


@pytest.fixture
def member(tmp_path: Path) -> Path:
    """A copy of a member, to spoil."""
    return Path(shutil.copytree(TUNED_DIR, tmp_path / "tuned"))


def test_demo_members_are_accepted() -> None:
    check_tokenizers(settings(TUNED_DIR))


def test_tokenizer_mismatch_names_the_first_different_token(member: Path) -> None:
    path = member / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    by_id = {token_id: token for token, token_id in vocabulary.items()}
    vocabulary[by_id[700]], vocabulary[by_id[900]] = 900, 700
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"member 'tuned' decodes token 700 as ") as caught:
        check_tokenizers(settings(member))
    assert repr(by_id[700]) in str(caught.value)


def test_vocabulary_size_mismatch_is_named(member: Path) -> None:
    path = member / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    added = {**tokenizer["added_tokens"][0], "id": 1536, "content": "<|more|>"}
    tokenizer["added_tokens"].append(added)
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"members\.tuned: its tokenizer has 1537 tokens"):
        check_tokenizers(settings(member))


def test_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"members\.tuned: .* has no tokenizer"):
        check_tokenizers(settings(tmp_path))
