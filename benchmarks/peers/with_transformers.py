"""Driver of decoding loops over a Transformers model, in the style of the papers' published code.

One prompt at a time, in eager PyTorch, with ``generate`` where possible; its KV cache lasts for one
call. Modelled on, but not copied from, Controlled Decoding (arXiv 2310.17022), FUDGE (arXiv
2104.05218) and ARGS (arXiv 2402.01694).
"""

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel

from benchmarks.peers.driver import Answer, Method, Setting, serve, setting
from cdserve.demo.tiny import HEAD_DIR, MODEL_DIR, Q_HEAD_DIR
from value_heads import QHead, ValueHead


@dataclass(slots=True)
class Response:
    """A partial or complete response.

    Attributes:
        tokens: token ids, including the end token.
        decoded: number of tokens decoded so far, including those of candidates.
        read: number of prompt and prefix tokens read so far.
    """

    tokens: list[int] = field(default_factory=list)
    decoded: int = 0
    read: int = 0


def guided_by_q(
    model: PreTrainedModel, q_head: QHead, prompt: list[int], *, beta: float, max_tokens: int
) -> Response:
    """Draws each token from p(z|s) exp(Q(s, z) / beta), all z at once from one state."""
    response = Response(read=len(prompt))
    cache = DynamicCache()
    ids = torch.tensor([prompt])
    while not _ended(model, response, max_tokens):
        out = model(input_ids=ids, past_key_values=cache, output_hidden_states=True)
        q = q_head(out.hidden_states[-1][:, -1])[:, 0]
        ids = (out.logits[:, -1] + q / beta).softmax(-1).multinomial(1)
        response.tokens.append(int(ids))
        response.decoded += 1
    return response


def guided_by_v(
    model: PreTrainedModel,
    head: ValueHead,
    prompt: list[int],
    *,
    beta: float,
    top_k: int,
    max_tokens: int,
) -> Response:
    """Draws each token from p(z|s) exp(V(s z) / beta) over the ``top_k`` most likely z.

    Each of these tokens is fed to the model to compute its value: a step is a batch of ``top_k``.
    """
    response = Response(read=len(prompt))
    cache = DynamicCache()
    logits = model(input_ids=torch.tensor([prompt]), past_key_values=cache).logits[:, -1]
    while not _ended(model, response, max_tokens):
        likeliest = logits[0].topk(top_k)
        cache.batch_repeat_interleave(top_k)
        out = model(
            input_ids=likeliest.indices[:, None], past_key_values=cache, output_hidden_states=True
        )
        values = head(out.hidden_states[-1][:, -1])[:, 0]
        chosen = (likeliest.values + values / beta).softmax(-1).multinomial(1)
        cache.batch_select_indices(chosen)
        logits = out.logits[chosen, -1]
        response.tokens.append(int(likeliest.indices[chosen]))
        response.decoded += top_k
    return response


def best_blocks(
    model: PreTrainedModel, head: ValueHead, prompt: list[int], *, k: int, m: int, max_tokens: int
) -> Response:
    """Repeatedly appends the block with the highest value of ``k`` sampled blocks of ``m`` tokens.

    ``generate`` reads the prefix again for every block, and another pass computes the value at the
    last token of each block.
    """
    response = Response()
    while not _ended(model, response, max_tokens):
        prefix = torch.tensor([prompt + response.tokens])
        length = prefix.shape[1]
        sequences = model.generate(
            prefix,
            attention_mask=torch.ones_like(prefix),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=k,
            max_new_tokens=min(m, max_tokens - len(response.tokens)),
        )
        blocks = [_until_end(block, _end(model)) for block in sequences[:, length:].tolist()]
        best = blocks[int(_values(model, head, sequences, length, blocks).argmax())]
        response.tokens += best
        response.decoded += sum(map(len, blocks))
        response.read += k * length + sequences.numel()
    return response


def _values(
    model: PreTrainedModel,
    head: ValueHead,
    sequences: Tensor,
    length: int,
    blocks: list[list[int]],
) -> Tensor:
    """V at the last token of each block, ``[K]``, ignoring padding."""
    last = torch.tensor([length + len(block) - 1 for block in blocks])
    states = model(input_ids=sequences, output_hidden_states=True).hidden_states[-1]
    return head(states[torch.arange(len(last)), last])[:, 0]


def _until_end(block: list[int], end: int) -> list[int]:
    return block[: block.index(end) + 1] if end in block else block


def _end(model: PreTrainedModel) -> int:
    return int(model.config.eos_token_id)


def _ended(model: PreTrainedModel, response: Response, max_tokens: int) -> bool:
    return len(response.tokens) >= max_tokens or response.tokens[-1:] == [_end(model)]


def methods(settings: Setting) -> dict[str, Method]:
    """The methods of this driver, by row of the table."""
    torch.set_num_threads(settings.threads)
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
                response = respond(chat["input_ids"])
            text = tokenizer.decode(response.tokens, skip_special_tokens=True)
            return Answer(text=text, decoded=response.decoded, read=response.read)

        return answer

    return {
        "Transformers token-wise by Q": method(
            lambda prompt: guided_by_q(
                model, q_head, prompt, beta=settings.beta, max_tokens=settings.max_tokens
            )
        ),
        "Transformers token-wise by V": method(
            lambda prompt: guided_by_v(
                model,
                head,
                prompt,
                beta=settings.beta,
                top_k=settings.top_k,
                max_tokens=settings.max_tokens,
            )
        ),
        "Transformers blockwise": method(
            lambda prompt: best_blocks(
                model, head, prompt, k=settings.k, m=settings.m, max_tokens=settings.max_tokens
            )
        ),
    }


if __name__ == "__main__":
    asyncio.run(serve(methods(setting())))
