"""Answers at high temperatures: tokens that the tokenizer would not make of their text."""

from openai import OpenAI

from cdserve.demo.tiny import MODEL_DIR
from cdserve.demo.tiny.build.folders import load_tokenizer

from .wire import BLOCKWISE, check_report, complete


def test_answer_is_continued_by_its_token_ids(client: OpenAI) -> None:
    """A hot answer is not what the tokenizer makes of its text; the ids are what counts."""
    hot = complete(client, BLOCKWISE, temperature=1.8, ignore_eos=True, max_tokens=40)
    prompt = [*hot.choices[0].prompt_token_ids, *hot.choices[0].token_ids]
    by_ids = complete(client, BLOCKWISE, prompt=prompt)
    assert by_ids.choices[0].prompt_token_ids == prompt
    check_report(by_ids.alignment, BLOCKWISE, by_ids.usage.completion_tokens)


def test_text_of_a_hot_answer_matches_its_tokens(client: OpenAI) -> None:
    """Characters of several tokens survive the block boundaries between them."""
    policy = {"method": "blockwise_cd", "k": 2, "m": 4, "report": "trace"}
    answer = complete(client, policy, temperature=2.0, ignore_eos=True, max_tokens=96)
    token_ids = answer.choices[0].token_ids
    decoded = load_tokenizer(MODEL_DIR).decode(token_ids, skip_special_tokens=True)
    text = answer.choices[0].text
    assert decoded.rstrip("\ufffd") == text.rstrip("\ufffd")
    candidates = [c for d in answer.alignment["trace"] for c in d["candidates"]]
    assert "".join(c["text"] for c in candidates if c["chosen"]) == text
