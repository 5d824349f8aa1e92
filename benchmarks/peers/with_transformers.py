"""Driver of loops over a Transformers model, in the manner of the papers' published code.

One prompt at a time, eager PyTorch, ``generate`` where it serves, and its KV cache, which ends with
each call. Read for what they do, none of it copied: Controlled Decoding (arXiv 2310.17022), FUDGE
(arXiv 2104.05218) and ARGS (arXiv 2402.01694).
"""

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel

from benchmarks.peers.driver import Answer, Method, Setting, serve, setting
from cdserve.demo import HEAD_DIR, MODEL_DIR, Q_HEAD_DIR
from value_heads import QHead, ValueHead


@dataclass(slots=True)
class Response:
    """A response in the making.

    Attributes:
        tokens: its token ids, the end token included.
        decoded: tokens decoded for it so far, those of candidates included.
        read: tokens of prompts and prefixes read for it so far.
    """

    tokens: list[int] = field(default_factory=list)
    decoded: int = 0
    read: int = 0


def guided_by_q(
    model: PreTrainedModel, q_head: QHead, prompt: list[int], *, beta: float, max_tokens: int
) -> Response:
    """Draws each token from p(z|s) exp(Q(s, z) / beta), all z at once from one state."""
    made = Response(read=len(prompt))
    cache = DynamicCache()
    ids = torch.tensor([prompt])
    while not _ended(model, made, max_tokens):
        out = model(input_ids=ids, past_key_values=cache, output_hidden_states=True)
        q = q_head(out.hidden_states[-1][:, -1])[:, 0]
        ids = (out.logits[:, -1] + q / beta).softmax(-1).multinomial(1)
        made.tokens.append(int(ids))
        made.decoded += 1
    return made


def guided_by_v(
    model: PreTrainedModel,
    head: ValueHead,
    prompt: list[int],
    *,
    beta: float,
    top_k: int,
    max_tokens: int,
) -> Response:
    """Draws each token from p(z|s) exp(V(s z) / beta) over the ``top_k`` likeliest z.

    Each of these is fed to the model to read its value, so a step is a batch of ``top_k``.
    """
    made = Response(read=len(prompt))
    cache = DynamicCache()
    logits = model(input_ids=torch.tensor([prompt]), past_key_values=cache).logits[:, -1]
    while not _ended(model, made, max_tokens):
        likeliest = logits[0].topk(top_k)
        cache.batch_repeat_interleave(top_k)
        out = model(
            input_ids=likeliest.indices[:, None], past_key_values=cache, output_hidden_states=True
        )
        values = head(out.hidden_states[-1][:, -1])[:, 0]
        chosen = (likeliest.values + values / beta).softmax(-1).multinomial(1)
        cache.batch_select_indices(chosen)
        logits = out.logits[chosen, -1]
        made.tokens.append(int(likeliest.indices[chosen]))
        made.decoded += top_k
    return made


def best_blocks(
    model: PreTrainedModel, head: ValueHead, prompt: list[int], *, k: int, m: int, max_tokens: int
) -> Response:
    """Appends, until the end, the one of ``k`` sampled blocks of ``m`` tokens of highest value.

    Every block begins with ``generate`` reading the prefix again, and is read once more for its
    value, which stands behind its last token.
    """
    made = Response()
    while not _ended(model, made, max_tokens):
        prefix = torch.tensor([prompt + made.tokens])
        length = prefix.shape[1]
        sequences = model.generate(
            prefix,
            attention_mask=torch.ones_like(prefix),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=k,
            max_new_tokens=min(m, max_tokens - len(made.tokens)),
        )
        blocks = [_until_end(block, _end(model)) for block in sequences[:, length:].tolist()]
        best = blocks[int(_values(model, head, sequences, length, blocks).argmax())]
        made.tokens += best
        made.decoded += sum(map(len, blocks))
        made.read += k * length + sequences.numel()
    return made


def _values(
    model: PreTrainedModel,
    head: ValueHead,
    sequences: Tensor,
    length: int,
    blocks: list[list[int]],
) -> Tensor:
    """V behind the last token of each block, ``[K]``; the padding after it is not looked at."""
    last = torch.tensor([length + len(block) - 1 for block in blocks])
    states = model(input_ids=sequences, output_hidden_states=True).hidden_states[-1]
    return head(states[torch.arange(len(last)), last])[:, 0]


def _until_end(block: list[int], end: int) -> list[int]:
    return block[: block.index(end) + 1] if end in block else block


def _end(model: PreTrainedModel) -> int:
    return int(model.config.eos_token_id)


def _ended(model: PreTrainedModel, made: Response, max_tokens: int) -> bool:
    return len(made.tokens) >= max_tokens or made.tokens[-1:] == [_end(model)]


def methods(given: Setting) -> dict[str, Method]:
    """The rows of the table that this driver makes."""
    torch.set_num_threads(given.threads)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    head, q_head = ValueHead.from_pretrained(HEAD_DIR), QHead.from_pretrained(Q_HEAD_DIR)

    def method(respond: Callable[[list[int]], Response]) -> Method:
        async def answer(prompt: str) -> Answer:
            torch.manual_seed(zlib.crc32(prompt.encode()))
            message = {"role": "user", "content": prompt}
            chat = tokenizer.apply_chat_template(
                [message], add_generation_prompt=True, return_dict=True
            )
            with torch.inference_mode():
                made = respond(chat["input_ids"])
            text = tokenizer.decode(made.tokens, skip_special_tokens=True)
            return Answer(text=text, decoded=made.decoded, read=made.read)

        return answer

    return {
        "Transformers token-wise by Q": method(
            lambda prompt: guided_by_q(
                model, q_head, prompt, beta=given.beta, max_tokens=given.max_tokens
            )
        ),
        "Transformers token-wise by V": method(
            lambda prompt: guided_by_v(
                model,
                head,
                prompt,
                beta=given.beta,
                top_k=given.top_k,
                max_tokens=given.max_tokens,
            )
        ),
        "Transformers blockwise": method(
            lambda prompt: best_blocks(
                model, head, prompt, k=given.k, m=given.m, max_tokens=given.max_tokens
            )
        ),
    }


if __name__ == "__main__":
    asyncio.run(serve(methods(setting())))
