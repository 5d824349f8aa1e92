"""What the check sees from inside vLLM's worker: an extension that its dev route calls.

`--worker-extension-cls gpu.probe.Probe` mixes it into the worker's class.
"""

import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import vllm
from vllm.utils.gpu_sync_debug import with_gpu_sync_check

import cdserve
import value_heads

_ROOTS = [Path(package.__file__).parent for package in (cdserve, value_heads, vllm)]
_CHECKER = "vllm/utils/gpu_sync_debug.py"
_TORCH_SAYS = "called a synchronizing CUDA operation"
_VLLM_SAYS = "GPU<->CPU sync detected"


class Probe:
    """Its methods become the worker's."""

    def probe_engine(self) -> dict[str, Any]:
        """What vLLM chose."""
        config = self.vllm_config  # type: ignore[attr-defined]
        compilation = config.compilation_config
        layers = compilation.static_forward_context.values()
        attention = {x.attn_backend.get_name() for x in layers if hasattr(x, "attn_backend")}
        sizes = compilation.cudagraph_capture_sizes or []
        return {
            "model_runner": "V2" if self.use_v2_model_runner else "V1",  # type: ignore[attr-defined]
            "cudagraph_mode": compilation.cudagraph_mode.name,
            "largest_graph": max(sizes, default=0),
            "async_scheduling": bool(config.scheduler_config.async_scheduling),
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "attention": sorted(attention),
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
        }

    def probe_steps(self, hold: str) -> None:
        """Records the steps from here on; the first is ``hold`` seconds later.

        The engine waits meanwhile, so that requests which come then begin in one step.
        """
        if not hasattr(self, "_probe_steps"):
            self._probe_steps = Steps(self)
        self._probe_steps.made = []
        time.sleep(float(hold))

    def probe_recorded(self) -> list[dict[str, float]]:
        """The steps since ``probe_steps``."""
        return self._probe_steps.read()

    def probe_syncs(self) -> None:
        """Records the synchronisations that vLLM's check reports from here on."""
        if not hasattr(self, "_probe_syncs"):
            self._probe_syncs = Syncs()
        self._probe_syncs.seen.clear()

    def probe_synced(self) -> list[dict[str, Any]]:
        """Those since ``probe_syncs``."""
        return self._probe_syncs.read()

    def probe_wait(self) -> None:
        """Synchronises as no step should, to see that the check sees it."""
        with_gpu_sync_check(lambda: torch.ones(1, device="cuda").item())()


@dataclass(slots=True)
class Step:
    """One of the engine's, in seconds."""

    rows: int
    tokens: int
    start: float
    host: float
    events: tuple[Any, Any] | None
    """CUDA events at its start and its end."""


class Steps:
    """Records a worker's steps: both of its methods that make one."""

    def __init__(self, worker: Any) -> None:
        self._execute, self._sample = worker.execute_model, worker.sample_tokens
        worker.execute_model, worker.sample_tokens = self.execute_model, self.sample_tokens
        self.made: list[Step] = []

    def execute_model(self, scheduler_output: Any) -> Any:
        if not scheduler_output.total_num_scheduled_tokens:
            return self._execute(scheduler_output)
        rows = len(scheduler_output.num_scheduled_tokens)
        step = Step(rows, scheduler_output.total_num_scheduled_tokens, 0.0, 0.0, _events())
        self.made.append(step)
        step.start = time.perf_counter()
        if step.events:
            step.events[0].record()
        output = self._execute(scheduler_output)
        self._end(step, step.start)
        return output

    def sample_tokens(self, grammar_output: Any) -> Any:
        start = time.perf_counter()
        output = self._sample(grammar_output)
        if self.made:
            self._end(self.made[-1], start)
        return output

    def _end(self, step: Step, since: float) -> None:
        step.host += time.perf_counter() - since
        if step.events:
            step.events[1].record()

    def read(self) -> list[dict[str, float]]:
        """Rows, tokens, start in seconds, times in ms."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return [_told(step) for step in self.made]


def _events() -> tuple[Any, Any] | None:
    if not torch.cuda.is_available():
        return None
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def _told(step: Step) -> dict[str, float]:
    record = {"rows": step.rows, "tokens": step.tokens, "start": step.start}
    record["host"] = 1e3 * step.host
    if step.events:
        record["device"] = step.events[0].elapsed_time(step.events[1])
    return record


class Syncs:
    """Where the process synchronised, as vLLM's check warns of it."""

    def __init__(self) -> None:
        self.seen = Counter[tuple[str, ...]]()
        warnings.showwarning = self.show
        # Else Python shows each line's warning once.
        warnings.filterwarnings("always", message=f".*({_TORCH_SAYS}|{_VLLM_SAYS})")

    def show(
        self, message: Any, category: Any, filename: str, lineno: int, *_: Any, **__: Any
    ) -> None:
        """Stands in for `warnings.showwarning`, which vLLM's check hands its warnings on to."""
        if any(said in str(message) for said in (_TORCH_SAYS, _VLLM_SAYS)):
            self.seen[frames(traceback.extract_stack())] += 1
        else:
            sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))

    def read(self) -> list[dict[str, Any]]:
        """The innermost line of vLLM's or cdserve's, those outside it, and how many times."""
        return [
            {"at": stack[0], "within": stack[1:6], "times": times}
            for stack, times in self.seen.most_common()
        ]


def frames(stack: Sequence[traceback.FrameSummary]) -> tuple[str, ...]:
    """The lines of vLLM, cdserve and value_heads in a stack, the innermost first."""
    found = []
    for frame in reversed(stack):
        root = next((r for r in _ROOTS if Path(frame.filename).is_relative_to(r)), None)
        if root is not None:
            name = Path(frame.filename).relative_to(root.parent)
            if str(name) != _CHECKER:
                found.append(f"{name}:{frame.lineno} {frame.name}")
    return tuple(found) or ("elsewhere",)
