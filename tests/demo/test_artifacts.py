"""The artefacts that ship with the package: they load, fit together and do their work."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers import LlamaForCausalLM

from cdserve.demo import (
    ARTIFACTS_DIR,
    HEAD_DIR,
    MODEL_DIR,
    PROMPTS_PATH,
    Q_HEAD_DIR,
    REF_DIR,
    REPORT_PATH,
    TUNED_DIR,
)
from cdserve.demo.build.evaluate import blockwise, reward_of, value_at_end
from cdserve.demo.build.folders import load_model, load_tokenizer
from cdserve.demo.build.rollouts import Rollout, sample
from cdserve.demo.build.tokenizer import VOCAB_SIZE
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


@pytest.fixture(scope="module")
def rollouts(model: LlamaForCausalLM, prompts: list[list[int]]) -> list[Rollout]:
    return sample(model, prompts, max_tokens=224, seed=0)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids) == text


def test_a_completion_prompt_begins_with_the_begin_token_once() -> None:
    ids = TOKENIZER.encode("Review:")
    assert ids[0] == TOKENIZER.bos_token_id
    assert ids.count(TOKENIZER.bos_token_id) == 1
    assert ids[1:] == TOKENIZER.encode("Review:", add_special_tokens=False)


def test_the_chat_template() -> None:
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


def test_the_chat_template_names_an_unknown_role() -> None:
    with pytest.raises(TemplateError, match="got tool"):
        TOKENIZER.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_the_models_share_a_tokenizer() -> None:
    texts = [(folder / "tokenizer.json").read_text() for folder in (MODEL_DIR, TUNED_DIR, REF_DIR)]
    assert texts[0] == texts[1] == texts[2]
    assert len(TOKENIZER) == VOCAB_SIZE
    assert VOCAB_SIZE % 64 == 0


def test_no_sampling_default_is_changed() -> None:
    generation = json.loads((MODEL_DIR / "generation_config.json").read_text())
    assert generation["eos_token_id"] == TOKENIZER.eos_token_id
    assert generation.keys() <= {
        "_from_model_config",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "transformers_version",
    }


def test_the_artefacts_are_small() -> None:
    total = sum(path.stat().st_size for path in ARTIFACTS_DIR.rglob("*") if path.is_file())
    assert total < 18e6


def test_the_head_belongs_to_the_model(head: ValueHead, model: LlamaForCausalLM) -> None:
    check_base(head.config, MODEL_DIR)
    with pytest.raises(ValueError, match="base_hash"):
        check_base(head.config, REF_DIR)
    assert head.config.hidden_size == model.config.hidden_size
    assert head.config.rewards == ("sentiment",)


def test_sampled_states_are_those_of_a_plain_forward(
    model: LlamaForCausalLM, rollouts: list[Rollout]
) -> None:
    for rollout in rollouts[:4]:
        with torch.no_grad():
            ids = torch.tensor([rollout.prompt + rollout.response])
            states = model(ids, output_hidden_states=True).hidden_states[-1][0]
        torch.testing.assert_close(
            rollout.hidden, states[len(rollout.prompt) :], atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(
            rollout.start, states[len(rollout.prompt) - 1], atol=1e-4, rtol=1e-4
        )


def test_responses_read_well_and_end_by_themselves(rollouts: list[Rollout]) -> None:
    assert sum(rollout.finished for rollout in rollouts) >= 0.95 * len(rollouts)
    lengths = sorted(len(rollout.response) for rollout in rollouts)
    assert 30 <= lengths[len(lengths) // 2] <= 120
    with_sentiment = [reward_of(rollout.response, TOKENIZER) != 0 for rollout in rollouts]
    assert sum(with_sentiment) >= 0.95 * len(rollouts)


def test_the_value_of_a_whole_response_is_its_reward(
    head: ValueHead, rollouts: list[Rollout]
) -> None:
    values = torch.tensor(value_at_end(head, rollouts))
    rewards = torch.tensor([reward_of(rollout.response, TOKENIZER) for rollout in rollouts])
    assert correlation(values, rewards) > 0.85


def test_the_q_head_belongs_to_the_model_and_knows_the_reward(rollouts: list[Rollout]) -> None:
    head = QHead.from_pretrained(Q_HEAD_DIR)
    check_base(head.config, MODEL_DIR)
    states = torch.cat([torch.cat([r.start[None], r.hidden[:-1]]) for r in rollouts])
    tokens = torch.cat([torch.tensor(r.response) for r in rollouts])
    lengths = torch.tensor([len(r.response) for r in rollouts])
    rewards = torch.tensor([reward_of(r.response, TOKENIZER) for r in rollouts])
    with torch.no_grad():
        values = head.of_token(states, tokens)[:, 0]
    assert correlation(values, rewards.repeat_interleave(lengths)) > 0.5
    last = lengths.cumsum(0) - 1
    assert correlation(values[last], rewards) > 0.75


def test_blockwise_decoding_raises_the_reward(
    model: LlamaForCausalLM, head: ValueHead, prompts: list[list[int]], rollouts: list[Rollout]
) -> None:
    steered = blockwise(model, head, prompts, k=4, m=32, seed=1)
    plain = [reward_of(rollout.response, TOKENIZER) for rollout in rollouts]
    gained = [reward_of(response, TOKENIZER) for response in steered]
    assert sum(gained) / len(gained) > sum(plain) / len(plain) + 0.2


def test_the_tuned_member_is_more_positive_than_the_reference(prompts: list[list[int]]) -> None:
    means = []
    for folder in (REF_DIR, TUNED_DIR):
        rollouts = sample(load_model(folder), prompts, max_tokens=224, seed=0)
        rewards = [reward_of(rollout.response, TOKENIZER) for rollout in rollouts]
        means.append(sum(rewards) / len(rewards))
    assert means[1] > means[0] + 0.15


def test_the_report_says_what_was_measured() -> None:
    report = json.loads(REPORT_PATH.read_text())
    assert report["heads"]["sentiment"]["at_end"] > 0.9
    for name in ("sentiment-q", "sentiment-cdq"):
        assert report["heads"][name]["at_end"] > 0.8
    decoding = report["decoding"]
    for steered in ("best_of_8", "blockwise_k4_m32"):
        gain = decoding[steered]["mean"] - decoding["none"]["mean"]
        assert gain > 0.3 > 2 * (decoding[steered]["ci95"] + decoding["none"]["ci95"])
    tuned, ref = decoding["member_tuned"], decoding["member_ref"]
    assert tuned["mean"] - tuned["ci95"] > ref["mean"] + ref["ci95"]
