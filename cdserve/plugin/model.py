"""The served model with heads and members beside it: a subclass of its architecture.

``cdserve.plugin.model:LlamaForCausalLM``, made on demand, is vLLM's own ``LlamaForCausalLM`` with a
few methods extended. A subclass, so that all that vLLM reads off the class (LoRA, quantisation,
pipeline parallelism, multi-modal interfaces) stays as it is.
"""

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.forward_context import get_forward_context

from cdserve.plugin.inputs import Rows, index
from cdserve.plugin.likelihoods import Likelihoods, Logits
from cdserve.plugin.members import Members, architecture
from cdserve.plugin.rows import ROWS, Row
from cdserve.plugin.scorer import ValueScorer
from cdserve.plugin.steerer import Steerer
from value_heads.kernels import runs_on

_LOGGER = logging.getLogger("vllm.cdserve")


class _Aligned:
    """Mixed in before the architecture's own class."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        attached = vllm_config.additional_config["cdserve"]
        device = vllm_config.device_config.device
        first = get_tensor_model_parallel_rank() == 0
        scores = first and attached["values"]
        # Wrapped, so that torch does not take the heads for weights of the checkpoint.
        fused = attached["kernels"] and runs_on(device)
        self._values = (ValueScorer(attached["values"], device, fused) if scores else None,)
        vocabulary = vllm_config.model_config.get_vocab_size()
        names = tuple(attached["members"])
        self._steerer = (Steerer(attached["q"], device, vocabulary, first, fused, names),)
        self._cold = fused
        models = attached["likelihoods"]
        self._likelihoods = Likelihoods(models, first) if models else None
        self._last = torch.empty(0, dtype=torch.long)
        self._vllm_config = vllm_config
        self._width = vllm_config.model_config.get_hidden_size()
        self.members = Members(vllm_config, attached["members"])
        self.secondary_weights = Members.sources(attached["members"])

    def get_model_state_cls(self) -> type:
        """The model's state in model runner V2, through which the row table follows the batch."""
        from vllm.v1.worker.gpu.model_states import resolve_model_state_cls

        from cdserve.plugin.runner_v2 import tracked

        own = getattr(super(), "get_model_state_cls", None)
        # In a container, which is asked for no class of its own.
        found = own() if own else resolve_model_state_cls(self._vllm_config, nn.ModuleList([self]))  # type: ignore[list-item]
        return tracked(found)

    def load_weights(self, weights: Any) -> set[str]:
        """The base's own weights and the members'."""
        return self.members.load(weights, super().load_weights)  # type: ignore[misc]

    def forward(
        self, input_ids: torch.Tensor | None, positions: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """The model's own forward pass and that of the members asked for.

        V of whole prompts is taken here too, where asked for.
        """
        hidden = super().forward(input_ids, positions, *args, **kwargs)  # type: ignore[misc]
        if not isinstance(hidden, torch.Tensor):  # a stage of the pipeline that hands on
            return hidden
        # V1 begins a step also where nothing is scheduled; the pass after it has no metadata.
        step = bool(get_forward_context().attn_metadata)
        if step and self._values[0] is not None and (rows := ROWS.every_position()):
            self._values[0].score_every(hidden, positions, _row_starts(), rows)
        wanted = ROWS.members() if step else None
        states: torch.Tensor = self.members(hidden, wanted, input_ids, positions)
        if step and self._likelihoods is not None and (rows := ROWS.likely()):
            self._read_tokens(states, input_ids, positions, rows)
        return states

    def compute_logits(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The model's own logits, steered where asked for; V is taken from the same states."""
        own, behind = hidden_states[:, : self._width], hidden_states[:, self._width :]
        due, steered, likely = ROWS.take()
        if self._values[0] is not None:
            self._values[0].score_last(own, due)
        logits = super().compute_logits(own, *args, **kwargs)  # type: ignore[misc]
        if self._cold:  # in vLLM's run that measures memory, after loading and before it serves
            self._cold = False
            self._warm_up(logits, own, behind)
        if logits is None or not (steered or likely):
            return logits
        known = self.members.logits(behind) if likely else None
        if known is not None and self._likelihoods is not None:
            self._likelihoods.step(likely, self._last, {"base": logits, **known})
        if not steered:
            return logits

        def members(rows: Rows) -> Logits:
            if known is None:
                return self.members.logits(behind[rows])
            return {name: z[rows] for name, z in known.items()}

        return self._steerer[0].steer(logits, own, steered, members, _lm_head(self))

    def _warm_up(
        self, logits: torch.Tensor | None, own: torch.Tensor, behind: torch.Tensor
    ) -> None:
        """Has Triton compile the kernels for what requests usually ask, on this run's tensors."""
        begun = time.perf_counter()
        kinds = 0 if self._values[0] is None else self._values[0].warm_up(own)
        if logits is not None:
            kinds += self._steerer[0].warm_up(
                logits, own, lambda rows: self.members.logits(behind[rows]), _lm_head(self)
            )
        if kinds:
            taken = time.perf_counter() - begun
            _LOGGER.info("kernels for %d kinds of rows were compiled in %.1f s", kinds, taken)

    def _read_tokens(
        self,
        states: torch.Tensor,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        rows: Mapping[int, Row],
    ) -> None:
        """Keeps the step's last tokens for its logits; reads texts whose log p is wanted whole."""
        if input_ids is None:
            return
        starts = _row_starts()
        self._last = input_ids[index([start - 1 for start in starts[1:]], input_ids.device)]
        for i, row in rows.items():
            if row.since is None or self._likelihoods is None:
                continue
            span = slice(starts[i], starts[i + 1])
            logits = partial(self._every_logits, states[span])
            self._likelihoods.text(row, input_ids[span], int(positions[span.start]), logits)

    def _every_logits(self, states: torch.Tensor, part: slice) -> Logits:
        """Logits of the base and of the members that ran, of a part of these states."""
        states = states[part]
        own, behind = states[:, : self._width], states[:, self._width :]
        base = super().compute_logits(own)  # type: ignore[misc]
        return {"base": base, **self.members.logits(behind)}


def _lm_head(model: Any) -> torch.Tensor | None:
    weight: torch.Tensor | None = getattr(getattr(model, "lm_head", None), "weight", None)
    return weight


def _row_starts() -> list[int]:
    """Where each row's tokens begin in the step's, and where the last row's end."""
    if ROWS.starts is not None:
        known: list[int] = ROWS.starts.tolist()
        return known
    metadata = get_forward_context().attn_metadata
    starts: list[int] = next(iter(metadata.values())).query_start_loc.tolist()
    return starts


def __getattr__(name: str) -> type:
    base = architecture(name)
    wrapped = type(base.__name__, (_Aligned, base), {"__module__": __name__})
    globals()[name] = wrapped
    return wrapped
