"""vLLM's worker, extended to deliver a step's results before its output.

``cdserve.worker.worker.Worker`` is the platform's class with two methods extended. The server reads
values once an output has arrived, so they are written before the output is sent; no step waits for
them. With asynchronous scheduling, vLLM reads outputs while the next step runs.
"""

from typing import Any

from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from cdserve.worker.readback import READ_BACK
from cdserve.worker.runner_v1 import skip_first_draws

_BASES = {
    "cpu": "vllm.v1.worker.cpu_worker.CPUWorker",
    "xpu": "vllm.v1.worker.xpu_worker.XPUWorker",
}
_BASE = "vllm.v1.worker.gpu_worker.Worker"


class _Delivering:
    """Mixin in front of the platform's class."""

    vllm_config: VllmConfig
    model_runner: Any

    def execute_model(self, scheduler_output: Any) -> Any:
        """As vLLM's; None if the step continues in ``sample_tokens``."""
        output = with_results(super().execute_model(scheduler_output))  # type: ignore[misc]
        if not self.vllm_config.use_v2_model_runner:
            skip_first_draws(self.model_runner, scheduler_output.scheduled_new_reqs)
        return output

    def sample_tokens(self, grammar_output: Any) -> Any:
        """As vLLM's."""
        return with_results(super().sample_tokens(grammar_output))  # type: ignore[misc]


class _Output(AsyncModelRunnerOutput):  # type: ignore[misc]
    """An output still on the device, and the number of results to deliver before it."""

    def __init__(self, inner: AsyncModelRunnerOutput) -> None:
        self._inner = inner
        self._results = READ_BACK.count

    def get_output(self) -> ModelRunnerOutput:
        """Waits for the output, then delivers the results."""
        output = self._inner.get_output()
        READ_BACK.flush(self._results)
        return output


def with_results(output: Any) -> Any:
    """Delivers a step's results before its output is read; returns the output."""
    if isinstance(output, AsyncModelRunnerOutput):
        return _Output(output)
    if output is not None:
        READ_BACK.flush(READ_BACK.count)
    return output


def __getattr__(name: str) -> type:
    if name != "Worker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    base = resolve_obj_by_qualname(_BASES.get(current_platform.device_type, _BASE))
    globals()[name] = worker = type(name, (_Delivering, base), {"__module__": __name__})
    return worker
