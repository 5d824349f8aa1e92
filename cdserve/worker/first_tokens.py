"""Draws the first tokens of later requests from the logits of rows that read V.

The row that reads V of a candidate has the logits of the token after it. The requests that continue
the candidate begin with a token drawn here, and take one step less.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import entry_points

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import LOGITSPROCS_GROUP
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from cdserve.worker.inputs import to_device
from cdserve.worker.readback import READ_BACK, ReadBack
from cdserve.worker.request import MOST_FIRST_TOKENS
from cdserve.worker.rows import FirstTokenRows, Floats
from cdserve.worker.tables import Tables

Draw = Callable[[Tensor, Sequence[int], Tensor], Tensor]
"""Draws a token from each row of logits ``[n, |V|]``, float32, after temperature and truncation.

The other arguments are the seeds of the requests ``[n]``, and the positions of the last tokens,
int64 ``[n]``. The tokens, int ``[n]``, are those that the model runner's sampler draws first for
requests with these seeds.
"""
SLICE = 64
"""Draws whose logits are in memory at once."""
_OWN_PROCESSORS = "cdserve."


class FirstTokenSampler:
    """Draws first tokens as vLLM's sampler does, and writes them to the tables of tickets.

    With tensor parallelism all workers draw: their samplers share a random state that a draw on a
    CPU changes.

    Args:
        draw: the model runner's draw.
        reports: whether this worker writes the tokens; exactly one worker does.
        back: copies the tokens to the host.
    """

    def __init__(self, draw: Draw, reports: bool, back: ReadBack = READ_BACK) -> None:
        self._draw = draw
        self._reports = reports
        self._back = back
        self._tables = Tables(MOST_FIRST_TOKENS)

    @torch.inference_mode()
    def step(self, rows: FirstTokenRows, logits: Tensor) -> None:
        """Draws the first tokens of the rows.

        Args:
            rows: rows with first tokens to draw.
            logits: logits of the next tokens, of the whole batch.
        """
        device = logits.device
        counts = [len(seeds) for seeds in rows.seeds]
        owners = np.repeat(np.arange(len(counts)), counts)
        columns = np.concatenate([np.arange(count) for count in counts])
        seeds = [seed for of_row in rows.seeds for seed in of_row]
        ints = [rows.index, owners, columns, rows.tokens[owners] - 1]
        index, owner, column, positions = to_device(ints, np.int64, device)
        z = truncated(logits[index], rows.temperatures, rows.truncations)
        tokens = torch.full((len(counts), MOST_FIRST_TOKENS), -1.0, device=device)
        for start in range(0, len(seeds), SLICE):
            part = slice(start, start + SLICE)
            drawn = self._draw(z[owner[part]], seeds[part], positions[part])
            tokens[owner[part], column[part]] = drawn.float()  # exact below 2^24
        if self._reports:
            deliver = partial(self._tables.write, rows.destinations, rows.tokens)
            self._back.submit(tokens, deliver)


def truncated(logits: Tensor, temperatures: Floats, truncations: npt.NDArray[np.float64]) -> Tensor:
    """The logits ``[n, |V|]`` after temperature, min_p, top_k and top_p, in vLLM's order, float32.

    Args:
        logits: logits of the model.
        temperatures: positive, ``[n]``.
        truncations: top_k, top_p and min_p, ``[n, 3]``.
    """
    top_k, top_p, min_p = np.asarray(truncations, np.float32).T
    with np.errstate(divide="ignore"):
        scales = [temperatures, top_p, np.log(min_p)]
    temperature, p, least = to_device(scales, np.float32, logits.device)
    z = logits.float() / temperature[:, None]
    if min_p.any():
        z = z.masked_fill(z < z.amax(-1, keepdim=True) + least[:, None], -torch.inf)
    k = None
    if (top_k > 0).any():
        numbers = np.where(top_k > 0, top_k, logits.shape[1])
        (k,) = to_device([numbers], np.int32, logits.device)
    kept: Tensor = apply_top_k_top_p(z, k, p if (top_p < 1.0).any() else None)
    return kept


def applies(config: VllmConfig) -> bool:
    """Whether vLLM's sampler does no more than ``truncated`` and a draw, for default parameters.

    It does more with the operator's own logits processors, and with watermarks.
    """
    named = config.model_config.logits_processors or ()
    others = [name for name in named if not str(name).startswith(_OWN_PROCESSORS)]
    installed = entry_points(group=LOGITSPROCS_GROUP)
    watermark = getattr(config, "watermark_config", None)
    return not others and not installed and watermark is None
