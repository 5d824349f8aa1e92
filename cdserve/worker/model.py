"""The served model with heads and members: a subclass of its architecture.

``cdserve.worker.model:LlamaForCausalLM``, created on demand, is vLLM's ``LlamaForCausalLM`` with a
few methods extended. A subclass keeps all that vLLM reads from the class: LoRA, quantisation,
pipeline parallelism, multi-modal interfaces.
"""

import logging
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.forward_context import get_forward_context

from cdserve.worker import runner_v1, runner_v2
from cdserve.worker.first_tokens import FirstTokenSampler, applies
from cdserve.worker.inputs import MemberLogits, to_device
from cdserve.worker.lm_head import lm_head
from cdserve.worker.members import Members, architecture
from cdserve.worker.rows import ROWS, PromptRows
from cdserve.worker.scorer import ValueScorer
from cdserve.worker.steerer import Steerer
from cdserve.worker.tickets import Ints
from cdserve.worker.token_stats import SLICE, Logits, TokenStats
from value_heads.kernels import runs_on

_LOGGER = logging.getLogger("vllm.cdserve")


class _Aligned:
    """Mixin in front of the architecture's class."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        attached = vllm_config.additional_config["cdserve"]
        device = vllm_config.device_config.device
        slots = vllm_config.scheduler_config.max_num_seqs
        first = get_tensor_model_parallel_rank() == 0
        scores = first and attached["values"]
        # In a tuple, so that torch does not register the heads as weights of the checkpoint.
        fused = attached["kernels"] and runs_on(device)
        self._values = (ValueScorer(attached["values"], device, fused) if scores else None,)
        runner = runner_v2 if vllm_config.use_v2_model_runner else runner_v1
        draw = runner.first_draw(vllm_config.model_config.use_fp64_gumbel)
        draws = attached["values"] and applies(vllm_config)
        self._first_tokens = FirstTokenSampler(draw, first) if draws else None
        vocabulary = vllm_config.model_config.get_vocab_size()
        names = tuple(attached["members"])
        steerer = Steerer(attached["q"], device, vocabulary, slots, first, fused, names)
        self._steerer = (steerer,)
        statistics = attached["token_stats"]
        ROWS.resize(slots, steerer.columns, names, statistics)
        self._cold = True
        self._token_stats = TokenStats(statistics, slots, first) if statistics else None
        self._last = torch.empty(0, dtype=torch.long)
        self._vllm_config = vllm_config
        self._width = vllm_config.model_config.get_hidden_size()
        self.members = Members(vllm_config, attached["members"])
        self.secondary_weights = Members.sources(attached["members"])

    def get_model_state_cls(self) -> type:
        """The model's state class in model runner V2; it updates the row table."""
        from vllm.v1.worker.gpu.model_states import resolve_model_state_cls

        own = getattr(super(), "get_model_state_cls", None)
        # In a container, since vLLM would ask the model for this method again.
        state = own() if own else resolve_model_state_cls(self._vllm_config, nn.ModuleList([self]))  # type: ignore[list-item]
        return runner_v2.tracked(state)

    def load_weights(self, weights: Any) -> set[str]:
        """Loads the weights of the base and the members."""
        return self.members.load(weights, super().load_weights)  # type: ignore[misc]

    def forward(
        self, input_ids: torch.Tensor | None, positions: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Runs the model and the members that rows need.

        Scores every prefix of prompts whose rows need it.
        """
        hidden = super().forward(input_ids, positions, *args, **kwargs)  # type: ignore[misc]
        if not isinstance(hidden, torch.Tensor):  # not the last pipeline stage
            return hidden
        # V1 begins a step even if nothing is scheduled; its pass has no metadata.
        step = bool(get_forward_context().attn_metadata)
        if step and self._values[0] is not None and (every := ROWS.prompt_value_rows()):
            starts = _row_starts()
            self._values[0].score_every(hidden, _located(every, starts, positions), starts)
        members = ROWS.members() if step else None
        states: torch.Tensor = self.members(hidden, members, input_ids, positions)
        if step and input_ids is not None and self._token_stats is not None and ROWS.reads_tokens:
            self._read_tokens(self._token_stats, states, input_ids, positions)
        return states

    def compute_logits(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Computes the logits, steered where rows ask for it, and V from the same hidden states."""
        own, behind = hidden_states[:, : self._width], hidden_states[:, self._width :]
        valued, steered, drawing, first = ROWS.take_step()
        if valued is not None and self._values[0] is not None:
            self._values[0].score_last(own, valued)
        logits = super().compute_logits(own, *args, **kwargs)  # type: ignore[misc]
        if self._cold:  # in vLLM's memory profiling, after loading and before serving
            self._cold = False
            self._warm_up(logits, own, behind)
        if first is not None and logits is not None and self._first_tokens is not None:
            self._first_tokens.step(first, logits)
        if logits is None or (steered is None and drawing is None):
            return logits
        by_member: Logits | None = None
        if drawing is not None and self._token_stats is not None:
            by_member = self.members.logits(behind)
            self._token_stats.step(drawing, self._last, {"base": logits, **by_member})
        if steered is None:
            return logits
        members = self._members_of(by_member, behind)
        return self._steerer[0].steer(logits, own, steered, members, lm_head(self))

    def _members_of(self, by_member: Logits | None, behind: torch.Tensor) -> MemberLogits:
        """Members' logits by rows: taken from ``by_member`` if given, otherwise computed."""

        def of(rows: torch.Tensor) -> Logits:
            if by_member is None:
                return self.members.logits(behind[rows])
            return {name: z[rows] for name, z in by_member.items()}

        return of

    def _warm_up(
        self, logits: torch.Tensor | None, own: torch.Tensor, behind: torch.Tensor
    ) -> None:
        """Allocates the memory that steps need, and compiles the usual kernels."""
        begun = time.perf_counter()
        kinds = 0 if self._values[0] is None else self._values[0].warm_up(own)
        if logits is not None:
            by_member: Logits | None = None
            if self._token_stats is not None:
                by_member = self.members.logits(behind)
                self._token_stats.warm_up({"base": logits, **by_member})
                text = own.new_zeros(SLICE, own.shape[1] + behind.shape[1])
                self._token_stats.warm_up(self._every_logits(text, slice(SLICE)))
            members = self._members_of(by_member, behind)
            kinds += self._steerer[0].warm_up(logits, own, members, lm_head(self))
        if kinds:
            taken = time.perf_counter() - begun
            _LOGGER.info("kernels for %d kinds of rows were compiled in %.1f s", kinds, taken)

    def _read_tokens(
        self,
        token_stats: TokenStats,
        states: torch.Tensor,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
    ) -> None:
        """Keeps the last token of each row; computes the statistics of rows of given tokens."""
        starts = _row_starts()
        (ends,) = to_device([starts[1:] - 1], np.int64, input_ids.device)
        self._last = input_ids[ends]
        texts = ROWS.text_stat_rows()
        if texts is None:
            return
        texts = _located(texts, starts, positions)
        for i, (row, tokens) in enumerate(zip(texts.index, texts.tokens, strict=True)):
            span = slice(int(starts[row]), int(starts[row + 1]))
            token_stats.text(
                int(texts.slots[i]),
                int(texts.requests[i]),
                texts.destinations.of(slice(i, i + 1)),
                int(texts.token_stats_start[i]),
                int(tokens) - (span.stop - span.start),
                input_ids[span],
                partial(self._every_logits, states[span]),
                texts.wanted[i],
            )

    def _every_logits(self, states: torch.Tensor, part: slice) -> Logits:
        """Logits of the base and the members that ran, for a slice of hidden states."""
        states = states[part]
        own, behind = states[:, : self._width], states[:, self._width :]
        base = super().compute_logits(own)  # type: ignore[misc]
        return {"base": base, **self.members.logits(behind)}


def _row_starts() -> Ints:
    """Offsets of the rows' tokens in the step, and the end of the last row, ``[batch + 1]``."""
    if ROWS.starts is not None:
        return ROWS.starts
    metadata = get_forward_context().attn_metadata
    starts: Ints = next(iter(metadata.values())).query_start_loc.cpu().numpy()
    return starts


def _located(rows: PromptRows, starts: Ints, positions: torch.Tensor) -> PromptRows:
    """The rows with prefix lengths read from positions, which runner V1 does not report."""
    if ROWS.starts is not None:
        return rows
    last = positions[torch.from_numpy(starts[rows.index + 1] - 1)]
    return replace(rows, tokens=last.cpu().numpy() + 1)


def __getattr__(name: str) -> type:
    base = architecture(name)
    wrapped = type(base.__name__, (_Aligned, base), {"__module__": __name__})
    globals()[name] = wrapped
    return wrapped
