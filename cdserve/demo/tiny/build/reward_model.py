"""Make a small sentiment reward model: ``python -m cdserve.demo.tiny.build.reward_model OUT``.

It is the demo's base model with a linear score instead of the output layer, in the format of
Transformers' ``LlamaForSequenceClassification``. It is not among the artefacts; making it takes
seconds.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from cdserve.demo.tiny import MODEL_DIR
from cdserve.demo.tiny.reward import sentiment

from .corpus import draw_prompt
from .folders import load_model, load_tokenizer
from .grammar import write_review

LABEL = "sentiment"
REVIEWS = 600
_RIDGE = 1.0
_BATCH = 64


def make_reward_model(
    folder: Path, *, base: Path = MODEL_DIR, reviews: int = REVIEWS, seed: int = 0
) -> None:
    """Write a reward model with one label, ``sentiment``, into a folder.

    The score is a ridge regression of the true sentiment on the last token's hidden state, for
    reviews of the corpus as assistant turns of a chat.

    Args:
        base: folder of the base model.
        reviews: number of reviews to fit the score on.
    """
    model, tokenizer = load_model(base), load_tokenizer(base)
    texts, rewards = _reviews(random.Random(seed), tokenizer, reviews)
    states = _last_states(model, tokenizer, texts)
    gram = states.T @ states + _RIDGE * torch.eye(states.shape[1])
    weight = torch.linalg.solve(gram, states.T @ torch.tensor(rewards))
    classifier = LlamaForSequenceClassification(
        LlamaConfig(
            **{
                **model.config.to_dict(),
                "architectures": ["LlamaForSequenceClassification"],
                "id2label": {0: LABEL},
                "label2id": {LABEL: 0},
            }
        )
    )
    classifier.model.load_state_dict(model.model.state_dict())
    classifier.score.weight.data = weight[None]
    classifier.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _reviews(
    rng: random.Random, tokenizer: PreTrainedTokenizerFast, count: int
) -> tuple[list[str], list[float]]:
    """Chats of a request and a review, in the model's template, and the reviews' sentiments."""
    texts, rewards = [], []
    for _ in range(count):
        prompt = draw_prompt(rng)
        review = write_review(rng, prompt.subject, prompt.length, prompt.manners)
        chat = [
            {"role": "user", "content": f"Review of {prompt.subject.name}:"},
            {"role": "assistant", "content": review.text},
        ]
        texts.append(str(tokenizer.apply_chat_template(chat, tokenize=False)))
        rewards.append(sentiment(review.text))
    return texts, rewards


@torch.inference_mode()
def _last_states(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> Tensor:
    """Hidden states of the texts' last tokens, after the final norm [texts, d]."""
    batches = []
    for start in range(0, len(texts), _BATCH):
        batch = tokenizer(
            list(texts[start : start + _BATCH]),
            add_special_tokens=False,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        last = batch["attention_mask"].sum(1) - 1
        states = model.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state
        batches.append(states[torch.arange(len(last)), last])
    return torch.cat(batches)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=make_reward_model.__doc__)
    parser.add_argument("out", type=Path, help="the model's folder")
    make_reward_model(parser.parse_args().out)


if __name__ == "__main__":
    main()
