"""Usage of a server since its start: CPU time by role, and tokens from its counters."""

from dataclasses import dataclass, fields

import httpx2
import psutil
from server import runs_model, totals


@dataclass(frozen=True, slots=True)
class Usage:
    """Totals since the server's start, or differences of two totals.

    Attributes:
        engine_s: CPU seconds of the processes that run the model.
        front_end_s: CPU seconds of the other processes: HTTP, tokenizing, search loops.
        candidate_tokens: ``cdserve_candidate_tokens_total``, summed over methods.
        generated_tokens: ``vllm:generation_tokens_total``, including plain requests.
    """

    engine_s: float
    front_end_s: float
    candidate_tokens: float
    generated_tokens: float

    @classmethod
    def of(cls, base_url: str, pid: int) -> "Usage":
        """The totals of the server at a URL with the given root process."""
        root = psutil.Process(pid)
        seconds = {True: 0.0, False: 0.0}
        for process in (root, *root.children(recursive=True)):
            times = process.cpu_times()
            seconds[runs_model(process)] += times.user + times.system
        counted = totals(httpx2.get(f"{base_url}/metrics", timeout=60).text)
        return cls(
            engine_s=seconds[True],
            front_end_s=seconds[False],
            candidate_tokens=counted["cdserve_candidate_tokens_total", ""],
            generated_tokens=counted["vllm:generation_tokens_total", ""],
        )

    def since(self, before: "Usage") -> "Usage":
        """The usage since an earlier one."""
        names = [field.name for field in fields(self)]
        return Usage(*(getattr(self, name) - getattr(before, name) for name in names))
