"""The artefacts that ship with the package: they load, fit together and do their work."""

import json
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers import LlamaForCausalLM

from cdserve.demo.tiny import (
    ARTIFACTS_DIR,
    HEAD_DIR,
    MODEL_DIR,
    PROMPTS_PATH,
    Q_HEAD_DIR,
    REF_DIR,
    REPORT_PATH,
    TUNED_DIR,
)
from cdserve.demo.tiny.build.folders import load_model, load_tokenizer
from cdserve.demo.tiny.build.tokenizer import VOCAB_SIZE
from cdserve.demo.tiny.reward import sentiment
from value_heads import QHead, ValueHead, check_base, correlation

TOKENIZER = load_tokenizer(MODEL_DIR)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return load_model(MODEL_DIR)


@pytest.fixture(scope="module")
def head() -> ValueHead:
    return ValueHead.from_pretrained(HEAD_DIR)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    lines = PROMPTS_PATH.read_text().splitlines()[:32]
    return [TOKENIZER.encode(json.loads(line)["prompt"]) for line in lines]


@torch.no_grad()
def sample(model: LlamaForCausalLM, prompts: list[list[int]]) -> list[list[int]]:
    """A response to each prompt, token ids, the end token included where it was sampled."""
    torch.manual_seed(0)
    batch = TOKENIZER.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    texts = model.generate(**batch, do_sample=True, top_k=0, max_new_tokens=224)
    width = batch["input_ids"].shape[1]
    return [[i for i in row.tolist() if i != TOKENIZER.pad_token_id] for row in texts[:, width:]]


def reward_of(response: list[int]) -> float:
    return sentiment(TOKENIZER.decode(response, skip_special_tokens=True))


@pytest.fixture(scope="module")
def responses(model: LlamaForCausalLM, prompts: list[list[int]]) -> list[list[int]]:
    return sample(model, prompts)


@pytest.fixture(scope="module")
def states(
    model: LlamaForCausalLM, prompts: list[list[int]], responses: list[list[int]]
) -> list[torch.Tensor]:
    """States [T + 1, d] of each response, after the final norm; the prompt's comes first."""
    with torch.no_grad():
        return [
            model.model(torch.tensor([prompt + response])).last_hidden_state[0, len(prompt) - 1 :]
            for prompt, response in zip(prompts, responses, strict=True)
        ]


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_tokenizer_round_trips_any_text(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids) == text


def test_encoded_prompt_has_one_begin_token() -> None:
    ids = TOKENIZER.encode("Review:")
    assert ids[0] == TOKENIZER.bos_token_id
    assert ids.count(TOKENIZER.bos_token_id) == 1
    assert ids[1:] == TOKENIZER.encode("Review:", add_special_tokens=False)


def test_chat_template_renders_all_roles() -> None:
    messages = [
        {"role": "system", "content": "You write reviews."},
        {"role": "user", "content": "Write one."},
    ]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|begin|><|system|>You write reviews.<|end|><|user|>Write one.<|end|><|assistant|>"
    )
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert [i for i in ids if i in TOKENIZER.all_special_ids] == [
        TOKENIZER.convert_tokens_to_ids(token)
        for token in ("<|begin|>", "<|system|>", "<|end|>", "<|user|>", "<|end|>", "<|assistant|>")
    ]
    answered = [*messages, {"role": "assistant", "content": "Done."}]
    text = TOKENIZER.apply_chat_template(answered, tokenize=False)
    assert text.endswith("<|assistant|>Done.<|end|>")


def test_chat_template_error_names_an_unknown_role() -> None:
    with pytest.raises(TemplateError, match="got tool"):
        TOKENIZER.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_base_and_members_share_a_tokenizer() -> None:
    texts = [(folder / "tokenizer.json").read_text() for folder in (MODEL_DIR, TUNED_DIR, REF_DIR)]
    assert texts[0] == texts[1] == texts[2]
    assert len(TOKENIZER) == VOCAB_SIZE
    assert VOCAB_SIZE % 64 == 0


def test_generation_config_changes_no_sampling_default() -> None:
    generation = json.loads((MODEL_DIR / "generation_config.json").read_text())
    assert generation["eos_token_id"] == TOKENIZER.eos_token_id
    assert generation.keys() <= {
        "_from_model_config",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "transformers_version",
    }


def test_artefacts_are_below_the_size_limit() -> None:
    total = sum(path.stat().st_size for path in ARTIFACTS_DIR.rglob("*") if path.is_file())
    assert total < 18e6


def test_value_head_belongs_to_the_base_model(head: ValueHead, model: LlamaForCausalLM) -> None:
    check_base(head.config, MODEL_DIR)
    with pytest.raises(ValueError, match="base_hash"):
        check_base(head.config, REF_DIR)
    assert head.config.hidden_size == model.config.hidden_size
    assert head.config.rewards == ("sentiment",)


def test_responses_contain_sentiment_and_end_by_themselves(responses: list[list[int]]) -> None:
    ended = [response[-1] == TOKENIZER.eos_token_id for response in responses]
    assert sum(ended) >= 0.95 * len(responses)
    assert 30 <= statistics.median(map(len, responses)) <= 120
    with_sentiment = [reward_of(response) != 0 for response in responses]
    assert sum(with_sentiment) >= 0.95 * len(responses)


def test_value_of_a_whole_response_correlates_with_its_reward(
    head: ValueHead, responses: list[list[int]], states: list[torch.Tensor]
) -> None:
    with torch.no_grad():
        values = head(torch.stack([state[-1] for state in states]))[:, 0]
    assert correlation(values, torch.tensor(list(map(reward_of, responses)))) > 0.85


def test_q_head_belongs_to_the_model_and_correlates_with_the_reward(
    responses: list[list[int]], states: list[torch.Tensor]
) -> None:
    head = QHead.from_pretrained(Q_HEAD_DIR)
    check_base(head.config, MODEL_DIR)
    before = torch.cat([state[:-1] for state in states])
    tokens = torch.cat([torch.tensor(response) for response in responses])
    lengths = torch.tensor(list(map(len, responses)))
    rewards = torch.tensor(list(map(reward_of, responses)))
    with torch.no_grad():
        values = head.q_of_token(before, tokens)[:, 0]
    assert correlation(values, rewards.repeat_interleave(lengths)) > 0.5
    last = lengths.cumsum(0) - 1
    assert correlation(values[last], rewards) > 0.75


def test_tuned_member_is_more_positive_than_the_reference(prompts: list[list[int]]) -> None:
    means = []
    for folder in (REF_DIR, TUNED_DIR):
        means.append(statistics.mean(map(reward_of, sample(load_model(folder), prompts))))
    assert means[1] > means[0] + 0.15


def test_report_has_the_correlations_of_the_heads() -> None:
    report = json.loads(REPORT_PATH.read_text())
    assert report["heads"]["sentiment"]["at_end"] > 0.9
    for name in ("sentiment-q", "sentiment-cdq"):
        assert report["heads"][name]["at_end"] > 0.8
