"""CUDA graphs on a CPU, by what they mean, under vLLM's own code that captures and replays them.

- While a graph is captured Python runs, and nothing is computed: what comes out is NaN.
- A replay computes what was captured, on the captured tensors as they are then. No Python runs:
  what Python decided at capture holds, and what it does beside the computation does not happen.
- All graphs leave their output in one pool, each over the one before.

A FULL graph is the model's whole forward pass. A PIECEWISE graph is the inner model of the base or
of a member, which `torch.compile` wraps on a GPU; attention, which runs between the pieces there,
is part of it here.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from vllm.compilation import cuda_graph
from vllm.compilation.counter import compilation_counter
from vllm.compilation.cuda_graph import CUDAGraphWrapper
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import get_forward_context, set_forward_context
from vllm.platforms import current_platform
from vllm.v1.worker.gpu import cudagraph_utils
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer

from cdserve.worker.rows import ROWS

from .kinds import SIZES

_POOL = 1 << 22


@dataclass
class Counted:
    """What was captured and replayed so far."""

    captured: int = 0
    """Graphs, before anything is served."""
    while_serving: int = 0
    """Graphs captured later."""
    replays: dict[str, int] = field(default_factory=lambda: {"FULL": 0, "PIECEWISE": 0})


@contextmanager
def emulated(runner: Any, mode: CUDAGraphMode) -> Iterator[Counted]:
    """Has a model runner V2 use CUDA graphs of a mode meanwhile; captures them first."""
    before, counted = compilation_counter.num_cudagraph_captured, Counted()
    with ExitStack() as stack:
        for change in _on_a_cpu(runner.vllm_config.compilation_config, mode):
            stack.enter_context(change)
        for change in _graphed(runner, mode, counted):
            stack.enter_context(change)
        runner.capture_model(profile_only=True)  # a CPU has no workspace to lock
        captured = compilation_counter.num_cudagraph_captured
        counted.captured = captured - before
        try:
            yield counted
        finally:
            counted.while_serving = compilation_counter.num_cudagraph_captured - captured


class _Graph:
    """In place of ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self.replay: Callable[[], object] = _empty


class _Capture:
    """In place of ``torch.cuda.graph``: what is captured says what its replay does."""

    into: ClassVar[_Graph | None] = None

    def __init__(self, graph: _Graph, pool: object = None, stream: object = None) -> None:
        self._graph = graph

    def __enter__(self) -> None:
        _Capture.into = self._graph

    def __exit__(self, *error: object) -> None:
        _Capture.into = None


def _empty() -> None:
    raise AssertionError("a graph is replayed that has captured nothing")


def _on_a_cpu(config: Any, mode: CUDAGraphMode) -> Iterator[Any]:
    """The changes that let vLLM's code for graphs run without CUDA."""
    yield patch.multiple(torch.cuda, CUDAGraph=_Graph, graph=_Capture)
    yield patch.multiple(
        config,
        cudagraph_mode=mode,
        cudagraph_capture_sizes=SIZES,
        max_cudagraph_capture_size=SIZES[-1],
    )
    yield patch.object(type(current_platform), "_global_graph_pool", (0, 1))
    yield patch.object(cuda_graph, "weak_ref_tensors", lambda tensors: tensors)
    yield patch.object(cudagraph_utils, "has_compiled_submodule", lambda model: True)


def _graphed(runner: Any, mode: CUDAGraphMode, counted: Counted) -> Iterator[Any]:
    """The changes that make the model's forward pass, and those of its inner models, graphs."""
    pool = torch.zeros(_POOL)
    model = runner.model
    for causal in (model, *model.members.children()):
        piece = _Piece(causal.model.forward, pool, counted)
        wrapper = CUDAGraphWrapper(piece, runner.vllm_config, CUDAGraphMode.PIECEWISE)
        yield patch.object(causal.model, "forward", wrapper)
    whole = _Whole(runner, counted)
    yield patch.object(model, "forward", whole.forward)
    yield patch.object(runner.model_state, "prepare_attn", whole.prepare_attn)
    manager = cudagraph_utils.ModelCudaGraphManager(
        runner.vllm_config, runner.device, mode, runner.decode_query_len, runner.lora_capture_cases
    )
    yield patch.object(runner, "cudagraph_manager", manager)


class _Piece:
    """An inner model, as vLLM's wrapper of PIECEWISE graphs calls it."""

    def __init__(self, forward: Callable[..., Tensor], pool: Tensor, counted: Counted) -> None:
        self._forward, self._pool, self._counted = forward, pool, counted

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        made = self._forward(*args, **kwargs)
        graph = _Capture.into
        if get_forward_context().cudagraph_runtime_mode != CUDAGraphMode.PIECEWISE or not graph:
            return made
        out = self._pool[: made.numel()].view(made.shape)

        def replay() -> None:
            self._counted.replays["PIECEWISE"] += 1
            out.copy_(self._forward(*args, **kwargs))

        graph.replay = replay
        return out.fill_(torch.nan)


class _Whole:
    """The model, as vLLM's manager of FULL graphs calls it."""

    def __init__(self, runner: Any, counted: Counted) -> None:
        self._runner, self._counted = runner, counted
        self._forward = runner.model.forward
        self._prepare_attn = runner.model_state.prepare_attn
        self._step: tuple[Any, Any] = (None, None)

    def prepare_attn(
        self, batch: Any, mode: Any, tables: Any, slots: Any, *rest: Any, **k: Any
    ) -> Any:
        """As the model state's; keeps the step's metadata, which a graph reads at its replay."""
        made = self._prepare_attn(batch, mode, tables, slots, *rest, **k)
        self._step = made, build_slot_mappings_by_layer(slots, self._runner.kv_cache_config)
        return made

    def forward(self, **inputs: Any) -> Tensor:
        """As the model's."""
        made: Tensor = self._forward(**inputs)
        graph = _Capture.into
        if graph is None or get_forward_context().cudagraph_runtime_mode != CUDAGraphMode.NONE:
            return made

        def replay() -> None:
            self._counted.replays["FULL"] += 1
            metadata, slots = self._step
            with (
                _no_python(self._runner.model),
                set_forward_context(
                    metadata, self._runner.vllm_config, num_tokens=len(made), slot_mapping=slots
                ),
            ):
                out = self._forward(**inputs)
            self._runner.cudagraph_manager.hidden_states[: len(out)] = out

        graph.replay = replay
        return torch.full_like(made, torch.nan)


@contextmanager
def _no_python(model: nn.Module) -> Iterator[None]:
    """A pass decided by what Python saw at capture, no step, and without what it sets beside."""
    state = [(module, dict(vars(module))) for module in model.modules()]
    with _no_step():
        yield
    for module, own in state:
        vars(module).clear()
        vars(module).update(own)


@contextmanager
def _no_step() -> Iterator[None]:
    """The row table as it is while no step runs."""
    kept = dict(vars(ROWS))
    vars(ROWS).update(vars(type(ROWS)()))
    try:
        yield
    finally:
        vars(ROWS).clear()
        vars(ROWS).update(kept)
