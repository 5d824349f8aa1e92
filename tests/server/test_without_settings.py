"""Any model without settings: ``cdserve serve --model``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from openai import OpenAI

from cdserve.config import BUILT_IN_REWARDS
from cdserve.demo.tiny import MODEL_DIR
from cdserve.demo.tiny.build.folders import load_model, load_tokenizer
from tests.waiting import HANG_SECONDS

from .served import Served
from .wire import PROMPT, complete

SIZE = 1541
"""Tokens of the vocabulary; vLLM pads it to a multiple of 64."""
BEST_OF_N = {"method": "best_of_n", "n": 4, "rewards": {"self_certainty": 1.0}}
BLOCKWISE = {"method": "blockwise_cd", "k": 3, "m": 7, "rewards": {"deepconf": 1.0}}
VOTE = {"method": "best_of_n", "n": 4, "selection": {"vote": {"extract": r"(\w+)"}}}
MBR = {"method": "best_of_n", "n": 4, "selection": {"mbr": {}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model with a few tokens more."""
    folder = tmp_path_factory.mktemp("models") / "any"
    larger = load_model(MODEL_DIR)
    larger.resize_token_embeddings(SIZE, mean_resizing=False)
    larger.save_pretrained(folder)
    load_tokenizer(MODEL_DIR).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    flags = ["--model", str(model), "--served-model-name", "demo", "--dtype", "float32"]
    flags += ["--max-model-len", "512", "--kv-cache-memory-bytes", str(64 << 20)]
    flags += ["--max-num-seqs", "16", "--enforce-eager"]
    with Served(None, tmp_path_factory.mktemp("plain"), flags) as served:
        yield served


@pytest.fixture(scope="module")
def plain(served: Served) -> Iterator[OpenAI]:
    url = f"{served.base_url}/v1"
    with OpenAI(base_url=url, api_key="-", max_retries=0, timeout=HANG_SECONDS) as client:
        yield client


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx2.Client]:
    with served.client() as http:
        yield http


def test_description_has_the_built_in_rewards_and_advice(http: httpx2.Client) -> None:
    answer = http.get("/v1/alignment").json()
    assert answer["rewards"].keys() == BUILT_IN_REWARDS.keys()
    assert "the model's own confidence" in answer["advice"]
    assert "the model's own confidence" in http.get("/v1/alignment").text
    assert http.get("/playground").status_code == 200


@torch.inference_mode()
def test_confidence_is_that_of_the_vocabulary_without_its_padding(
    plain: OpenAI, model: Path
) -> None:
    for policy in (BEST_OF_N, BLOCKWISE):
        answer = complete(plain, policy, ignore_eos=True, max_tokens=30)
        (choice,) = answer.choices
        ids = torch.tensor([[*choice.prompt_token_ids, *choice.token_ids]])
        log_p = load_model(model)(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        assert log_p.shape[-1] == SIZE
        drawn = log_p[-len(choice.token_ids) :]
        expected = {
            "self_certainty": float(-(SIZE * drawn.exp()).log().mean()),
            "deepconf": float(-drawn.topk(20).values.mean()),
        }
        for name, value in answer.alignment["rewards"].items():
            assert value == pytest.approx(expected[name], abs=1e-4)


@pytest.mark.parametrize("policy", [VOTE, MBR], ids=["vote", "mbr"])
def test_answers_are_selected_by_agreement_alone(plain: OpenAI, policy: dict[str, Any]) -> None:
    assert complete(plain, policy).alignment["rewards"] == {}


def test_given_texts_are_scored(http: httpx2.Client) -> None:
    body = {"prompt": PROMPT, "responses": ["It broke."], "rewards": {"self_certainty": 1.0}}
    (scored,) = http.post("/v1/alignment/score", json=body).raise_for_status().json()["scores"]
    assert scored["score"] > 0


def test_missing_reward_is_an_error_that_says_what_is_possible(plain: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(plain, {"method": "best_of_n", "n": 4})
    message = caught.value.body["message"]  # type: ignore[index]
    assert "no default among deepconf, self_certainty" in message
    assert "by a vote by count or by mbr" in message


def test_plain_request_has_no_report(plain: OpenAI) -> None:
    assert not hasattr(complete(plain, None), "alignment")
