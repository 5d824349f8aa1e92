"""Models whose next-token distribution is a table of the last token, built as Llama weights.

The embedding of state i is e_i + c, attention and MLP add nothing, the final norm scales by a
constant, so the LM head can hold any table of logits. A Q-head on the same states holds any table
of values.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from cdserve.demo.tiny import MODEL_DIR
from cdserve.demo.tiny.build.folders import load_tokenizer
from value_heads import HeadConfig, QHead, ValueHead

STATES = 6
VOCABULARY = 64
"""Of the models, the first of the tokenizer's: what each step costs grows with it."""
FIRST = 32
"""Token id of state 0; a table's ids from here on are all that is ever sampled."""
NEVER = -60.0
"""Logit of all other tokens."""


def build_model(table: Tensor, hidden_size: int, folder: Path) -> None:
    """Writes a model with logits ``table`` [S, S], next token by last token, of S states.

    The last of its ``hidden_size`` > S dimensions is the same in all states.
    """
    states = len(table)
    tokenizer = load_tokenizer(MODEL_DIR)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=2048,
        rms_norm_eps=1e-12,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    state = model.state_dict()
    for name, weight in state.items():
        weight.fill_(1.0 if "norm" in name else 0.0)
    embedding, lm_head = state["model.embed_tokens.weight"], state["lm_head.weight"]
    embedding[:, -1] = 1.0
    embedding[list(range(FIRST, FIRST + states)), list(range(states))] = 1.0
    scale = (hidden_size / 2) ** 0.5  # of the final norm, on a vector of two ones
    lm_head[:, -1] = NEVER / scale
    lm_head[FIRST : FIRST + states, -1] = 0.0
    lm_head[FIRST : FIRST + states, :states] = table.T / scale
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_heads(values: Tensor, q_values: Tensor, hidden_size: int, folder: Path) -> None:
    """Writes a value head of S states, [S], and a Q-head of next tokens, [S, S]."""
    states = len(values)
    scale = (hidden_size / 2) ** 0.5
    common = {"rewards": ("r",), "hidden_size": hidden_size, "shift": (0.0,), "scale": (1.0,)}
    q_head = QHead(
        HeadConfig(
            architecture="lowrank",
            rank=states,
            vocab_size=VOCABULARY,
            base_model="table",
            **common,  # type: ignore[arg-type]
        )
    )
    with torch.no_grad():
        q_head.state.weight.zero_()
        q_head.state.bias.zero_()
        q_head.factor.weight[:, :states] = torch.eye(states) / scale
        q_head.tokens.zero_()
        q_head.tokens[0, FIRST : FIRST + states] = q_values.T
    q_head.save_pretrained(folder / "q")
    head = ValueHead(HeadConfig(architecture="linear", base_model="table", **common))  # type: ignore[arg-type]
    with torch.no_grad():
        head.net.weight.zero_()
        head.net.bias.zero_()
        head.net.weight[0, :states] = values / scale
    head.save_pretrained(folder / "v")


def counts(responses: Sequence[Sequence[int]], start: int) -> Tensor:
    """How often each token followed each, in responses to a prompt that ends in ``start``."""
    found = torch.zeros(STATES, STATES)
    for response in responses:
        ids = torch.tensor([start, *response]) - FIRST
        found.index_put_((ids[:-1], ids[1:]), torch.ones(len(response)), accumulate=True)
    return found
