"""Prompts of a file, with their tokens and their text."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cdserve.demo.tiny import MODEL_DIR
from cdserve.errors import ConfigError
from cdserve.prompts import encode, read_prompts, text_of

TOKENIZER = AutoTokenizer.from_pretrained(MODEL_DIR)
CHAT = [{"role": "user", "content": "Write a review."}]
RENDERED = "<|begin|><|user|>Write a review.<|end|><|assistant|>"


def file_of(folder: Path, *lines: Any) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


class TestRead:
    def test_read_prompts_accepts_all_forms_and_skips_blank_lines(self, tmp_path: Path) -> None:
        path = file_of(
            tmp_path,
            {"prompt": "Film review:", "id": 7},
            "",
            {"prompt": CHAT},
            "  \r",
            {"messages": CHAT, "source": "here"},
        )
        assert read_prompts(path) == ["Film review:", CHAT, CHAT]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{'prompt': 1}", r"not JSON; it must be \{\"prompt\": \"text\"\}"),
            ("[" * 100_000, r"not JSON"),
            ([1], r"is \[1\]; it must be"),
            ({"text": "a"}, r"is \{'text': 'a'\}; it must be"),
            ({"prompt": "a", "messages": CHAT}, r"with both keys; it must be"),
            ({"prompt": 3}, r"prompt is 3; a line must be"),
            ({"prompt": []}, r"prompt is \[\]; a line must be"),
            ({"messages": "a"}, r"messages is 'a'; a line must be"),
            ({"messages": ["a"]}, r"messages has 'a'; a message must be"),
            ({"messages": [{"role": "user"}]}, r"messages has \{'role': 'user'\}; a message"),
            ({"prompt": [{"content": "a"}]}, r"prompt has \{'content': 'a'\}; a message"),
            (
                {"messages": [*CHAT, {"role": "assistant", "content": "Fine."}]},
                r"ends with \{'role': 'assistant', .*last message must not be the assistant's",
            ),
        ],
    )
    def test_read_prompts_names_the_invalid_line(
        self, tmp_path: Path, line: Any, message: str
    ) -> None:
        path = file_of(tmp_path, {"prompt": "a"}, "", line)
        with pytest.raises(ConfigError, match=rf"prompts\.jsonl, line 3.*{message}"):
            read_prompts(path)

    def test_read_prompts_rejects_a_file_without_prompts(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"prompts\.jsonl has no prompts; each line must"):
            read_prompts(file_of(tmp_path, "", " "))

    def test_read_prompts_names_an_unreadable_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"missing: the prompts cannot be read: "):
            read_prompts(tmp_path / "missing")
        (tmp_path / "latin").write_bytes(b'{"prompt": "caf\xe9"}')
        with pytest.raises(ConfigError, match=r"latin: the prompts cannot be read: "):
            read_prompts(tmp_path / "latin")


class TestEncode:
    def test_encode_adds_the_begin_token_once(self) -> None:
        text, chat = encode(["Film review:", CHAT], TOKENIZER)
        assert text == TOKENIZER("Film review:")["input_ids"]
        assert TOKENIZER.decode(text) == "<|begin|>Film review:"
        assert chat == TOKENIZER.apply_chat_template(
            CHAT, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert TOKENIZER.decode(chat) == RENDERED

    def test_encode_names_a_prompt_that_the_template_rejects(self) -> None:
        wrong = [{"role": "narrator", "content": "a"}]
        with pytest.raises(ConfigError, match=r"prompt 2, \[\{'role': 'narrator'.*role must be"):
            encode(["a", wrong], TOKENIZER)

    def test_encode_rejects_a_chat_without_a_chat_template(self) -> None:
        tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
        tokenizer.chat_template = None
        with pytest.raises(ConfigError, match=r"prompt 1, .*chat_template is not set"):
            encode([CHAT], tokenizer)

    def test_encode_rejects_a_prompt_without_tokens(self) -> None:
        def tokenizer(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": []}

        with pytest.raises(ConfigError, match=r"prompt 1, '', has no tokens"):
            encode([""], tokenizer)


def test_text_of_renders_chats_and_keeps_texts() -> None:
    assert text_of("Film review:", TOKENIZER) == "Film review:"
    assert text_of(CHAT, TOKENIZER) == RENDERED
