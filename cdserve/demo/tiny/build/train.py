"""Training of the demo's language models on documents of the corpus."""

import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Documents = list[list[int]]  # token ids

IGNORED = -100
BATCH_TOKENS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The size of a language model."""

    hidden: int
    layers: int
    mlp: int
    kv_heads: int

    def config(self, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
        """Return a Llama configuration with heads of 64 and tied embeddings."""
        return LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            intermediate_size=self.mlp,
            num_attention_heads=self.hidden // 64,
            num_key_value_heads=self.kv_heads,
            head_dim=64,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )


BASE = Size(hidden=256, layers=4, mlp=768, kv_heads=2)
MEMBER = Size(hidden=128, layers=2, mlp=384, kv_heads=1)


def new_model(size: Size, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return an untrained model."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(size.config(tokenizer))


def batches(documents: Documents, rng: random.Random, pad: int) -> Iterator[torch.Tensor]:
    """Yield every document once, in padded batches [B, T] of documents of similar length."""
    order = sorted(documents, key=lambda ids: (len(ids), rng.random()))
    groups: list[Documents] = [[]]
    for ids in order:
        if (len(groups[-1]) + 1) * len(ids) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(ids)
    rng.shuffle(groups)
    for group in groups:
        width = max(len(ids) for ids in group)
        yield torch.tensor([ids + [pad] * (width - len(ids)) for ids in group])


def next_token_loss(model: LlamaForCausalLM, ids: torch.Tensor, pad: int) -> torch.Tensor:
    """Return the mean cross-entropy of ids [B, T], in nats per token, excluding padding.

    Padding is on the right and attention is causal, so no attention mask is needed.
    """
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    targets = ids[:, 1:].masked_fill(ids[:, 1:] == pad, IGNORED)
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def train(model: LlamaForCausalLM, documents: Documents, *, peak_lr: float, seed: int) -> float:
    """Train in place with AdamW; return the mean loss of the last tenth of the steps."""
    rng = random.Random(seed)
    pad = int(model.config.pad_token_id)
    steps = list(batches(documents, rng, pad))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.05
    )
    model.train()
    losses: list[float] = []
    started = time.monotonic()
    for step, ids in enumerate(steps):
        progress = (step + 1) / len(steps)
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * min(1.0, 20 * progress) * math.cos(progress * math.pi / 2)
        loss = next_token_loss(model, ids, pad)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % max(1, len(steps) // 10) == 0:
            seconds = time.monotonic() - started
            print(
                f"  step {step}/{len(steps)}: loss {losses[-1]:.3f} ({seconds:.0f} s)", flush=True
            )
    model.eval()
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)
