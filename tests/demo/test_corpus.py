import itertools
import json
import random

from cdserve.demo.tiny import PROMPTS_PATH
from cdserve.demo.tiny.build.corpus import (
    ASSISTANT,
    BOS,
    EOS,
    completion_prompts,
    documents,
    draw_prompt,
    held_out_prompts,
)
from cdserve.demo.tiny.build.subjects import films, products
from cdserve.demo.tiny.reward import sentiment


def take(count: int, seed: int = 0, at_least: float = -1.0) -> list[str]:
    return list(itertools.islice(documents(random.Random(seed), at_least=at_least), count))


def test_split_holds_out_pairs_of_words_not_words() -> None:
    for side in (films, products):
        trained = {word for subject in side(held_out=False) for word in subject.name.split()}
        held_out = {word for subject in side(held_out=True) for word in subject.name.split()}
        assert held_out <= trained
        assert not {s.name for s in side(held_out=True)} & {s.name for s in side(held_out=False)}
        assert 0.1 < len(side(held_out=True)) / len(side(held_out=False)) < 0.4


def test_held_out_prompts_are_absent_from_the_corpus() -> None:
    prompts = [json.loads(line)["prompt"] for line in PROMPTS_PATH.read_text().splitlines()]
    assert len(set(prompts)) == len(prompts) >= 256
    corpus = "\n".join(take(4000))
    names = [subject.name for subject in films(held_out=True) + products(held_out=True)]
    assert not [name for name in names if name in corpus]
    assert not [prompt for prompt in prompts if prompt in corpus]
    assert all(any(name in prompt for name in names) for prompt in prompts)


def test_held_out_prompts_do_not_depend_on_the_run() -> None:
    assert held_out_prompts(20, seed=1) == held_out_prompts(20, seed=1)
    assert held_out_prompts(20, seed=1) != held_out_prompts(20, seed=2)


def test_documents_do_not_depend_on_the_run() -> None:
    assert take(50) == take(50) != take(50, seed=1)


def test_document_is_prompt_review_end_token_and_rating() -> None:
    for document in take(200):
        assert document.startswith(BOS)
        body, _, rating = document.rpartition(EOS)
        review = body.rpartition(ASSISTANT)[2]
        assert rating == str(min(9, int((sentiment(review) + 1) * 5)))


def test_documents_have_the_minimum_sentiment() -> None:
    for document in take(100, at_least=0.25):
        assert sentiment(document) >= 0.25


def test_prompts_contain_no_sentiment() -> None:
    rng = random.Random(0)
    for held_out in (False, True):
        for _ in range(300):
            prompt = draw_prompt(rng, held_out=held_out)
            assert sentiment(prompt.text) == 0.0
            assert prompt.subject.held_out == held_out
            assert prompt.subject.name in prompt.text


def test_every_subject_has_several_completion_prompts() -> None:
    for subject in (films(held_out=True)[0], products(held_out=True)[0]):
        prompts = completion_prompts(subject)
        assert len(set(prompts)) == len(prompts) >= 4
